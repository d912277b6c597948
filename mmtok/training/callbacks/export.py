"""A folder that `mmtok.load` reads, kept up to date while training."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from mmtok import hub
from mmtok.training.task import TokenizerTask


class Export(pl.Callback):
    """Writes `<run>/tokenizer` (averaged weights when there are some) at the end of training.

    every  also every so many generator steps; null only at the end
    """

    def __init__(self, every: int | None = None) -> None:
        self.every = every
        self._written = -1

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: TokenizerTask, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every is not None and trainer.global_step % self.every == 0 and pl_module.at_update:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: TokenizerTask) -> None:  # type: ignore[override]
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, pl_module: TokenizerTask) -> None:
        tokenizer = pl_module.tokenizer
        if not trainer.is_global_zero or tokenizer.config is None or trainer.global_step == self._written:
            return  # without a config (a task built in Python) there is nothing that could be rebuilt
        self._written = trainer.global_step
        with pl_module.ema.applied(tokenizer) if pl_module.ema is not None else nullcontext():
            hub.save(tokenizer, Path(trainer.default_root_dir) / "tokenizer")
        tokenizer.tokenizer_id = ""  # the live weights are others again
