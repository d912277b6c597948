"""Checkpoints that survive anything, and orderly stops.

`last.ckpt` is always a whole file, the one before it stays as `previous.ckpt`. SIGTERM, SIGUSR1 and Ctrl-C only set a
flag; the step in progress ends, all processes agree, a checkpoint is written and training stops. One process that was
told is enough. A second Ctrl-C stops at once.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch import callbacks as stock
from torch.distributed.distributed_c10d import _get_default_store

from mmtok.training.checkpoint_io import LAST, AtomicIO, link, sweep

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_KEY = "mmtok/stop"


class Checkpoint(stock.Checkpoint):
    """Writes `<run>/checkpoints/last.ckpt`.

    every  generator steps between checkpoints; one more is written at the end and when the run is stopped
    keep   also keep a copy `step_<n>.ckpt` every so many generator steps; null keeps none
    """

    def __init__(self, every: int = 1000, keep: int | None = None) -> None:
        super().__init__()
        if every < 1 or (keep is not None and keep % every):
            raise ValueError("checkpoint.every must be positive, and checkpoint.keep a multiple of it")
        self.every, self.keep = every, keep
        self.signal: int | None = None  # what stopped the run
        self._saved = -1
        self._handlers: dict[int, Any] = {}
        self._pid = os.getpid()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicIO()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved, self._pid = trainer.global_step, os.getpid()
        if trainer.strategy.broadcast(self._saved) != self._saved:
            raise ValueError(
                f"--ckpt_path: rank {trainer.global_rank} starts at step {self._saved}, rank 0 elsewhere: the processes"
                " do not see the same checkpoint"
            )
        if trainer.is_global_zero:
            sweep(self.folder(trainer))
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._handlers[number] = signal.signal(number, self._request)
            # a forkserver that started data workers hands blocked signals to whatever it starts later
            signal.pthread_sigmask(signal.SIG_UNBLOCK, set(SIGNALS))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.at_update:
            return  # between two batches of one update there are gradients that no file holds
        stop = trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)
        if stop or trainer.global_step % self.every == 0:
            self.save(trainer)
        if stop:
            self.signal = self.signal or signal.SIGTERM  # another rank was told
            trainer.should_stop = True
            # Lightning would run on to min_steps or min_epochs, and validate first
            trainer.fit_loop.epoch_loop.min_steps = trainer.fit_loop.min_epochs = 0
            trainer.limit_val_batches = 0

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "fit" and self._told_anywhere():
            pl_module.validation.cut = True  # type: ignore[union-attr]  # a part of the data gives no number
            raise StopIteration  # ends Lightning's evaluation loop; the next training step then stops the run

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.signal is not None:
            return  # the process ends: torchrun's SIGTERM, sent when the first rank has ended, must not cut that short
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def folder(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    def save(self, trainer: pl.Trainer) -> None:
        """Writes last.ckpt unless this step is saved already. Called on all ranks."""
        step = trainer.global_step
        if step == self._saved:
            return
        self._saved = step
        last = self.folder(trainer) / LAST
        trainer.save_checkpoint(last, weights_only=False)
        if trainer.is_global_zero and self.keep is not None and step % self.keep == 0:
            link(last, last.with_name(f"step_{step:09d}.ckpt"))

    def _told_anywhere(self) -> bool:
        """Whether any process was told to stop. Validation is uneven: the key-value store is asked, no collective."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.signal is not None
        store = _get_default_store()
        if self.signal is not None:
            store.set(_KEY, "1")
            return True
        return store.check([_KEY])

    def _request(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a process forked from this one that has not set its own handlers
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
