"""A folder that `mmtok.load` reads, kept up to date while training."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from mmtok import hub
from mmtok.data.shard_module import ShardModule
from mmtok.tables import fit_tables
from mmtok.training.callbacks.checkpoint import Checkpoint
from mmtok.training.task import TokenizerTask


class Export(pl.Callback):
    """Writes `<run>/tokenizer` (averaged weights when there are some) at the end of training, or when it is stopped.

    every   also every so many generator steps; null only at the end
    tables  training batches whose codes give the entropy tables that are saved at the end; 0 saves none. A run that is
            stopped by a signal saves none either: it must not wait for so many batches
    """

    def __init__(self, every: int | None = None, tables: int = 64) -> None:
        self.every, self.tables = every, tables
        self._written = -1

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: TokenizerTask, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every is not None and trainer.global_step % self.every == 0 and pl_module.at_update:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: TokenizerTask) -> None:  # type: ignore[override]
        stopped = any(isinstance(c, Checkpoint) and c.signal is not None for c in trainer.callbacks)  # type: ignore[attr-defined]
        self._write(trainer, pl_module, last=not stopped)
        trainer.strategy.barrier()  # a launcher ends the processes that are left soon after the first has gone

    def _write(self, trainer: pl.Trainer, pl_module: TokenizerTask, last: bool = False) -> None:
        tokenizer = pl_module.tokenizer
        if not trainer.is_global_zero or tokenizer.config is None:
            return  # without a config (a task built in Python) there is nothing that could be rebuilt
        if trainer.global_step == self._written and not last:
            return
        self._written = trainer.global_step
        with pl_module.ema.applied(tokenizer) if pl_module.ema is not None else nullcontext():
            if last and self.tables and isinstance(trainer.datamodule, ShardModule):  # type: ignore[attr-defined]
                # a loader of its own: the run's cursor must not move
                loader = trainer.datamodule.train_loader(rank=0, world=1)  # type: ignore[attr-defined]
                fit_tables(tokenizer, islice(loader, self.tables))
                loader.close()
            hub.save(tokenizer, Path(trainer.default_root_dir) / "tokenizer")
        tokenizer.tokenizer_id, tokenizer.tables = "", None  # the live weights are others again
