"""Checkpoints that survive anything, and orderly stops.

`last.ckpt` is always a whole file: it is written beside its place, flushed to disk and renamed; the one before it stays
as `previous.ckpt`. SIGTERM and Ctrl-C only set a flag; the step in progress ends, all processes agree, a checkpoint is
written and training stops. A second Ctrl-C stops at once.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import callbacks as stock


class AtomicIO(TorchCheckpointIO):
    """torch.save into a temporary file, fsync, rename; a full disk or a kill leaves the old file as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Tensors and plain values only, whatever is asked: nothing is unpickled."""
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            text = str(error).splitlines()[0]
            raise ValueError(f"{path} is not a whole checkpoint ({text}); try previous.ckpt beside it") from None


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
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._request)

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

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
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
        folder = self.folder(trainer)
        last = folder / "last.ckpt"
        if trainer.is_global_zero and last.is_file():
            _link(last, folder / "previous.ckpt")
        trainer.save_checkpoint(last, weights_only=False)
        if trainer.is_global_zero and self.keep is not None and step % self.keep == 0:
            _link(last, folder / f"step_{step:09d}.ckpt")

    def _request(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # a forked data worker: Ctrl-C reaches the whole group, and the last batches are still wanted
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's `checkpoints` folder."""
    return next((path for name in ("last", "previous") if (path := folder / f"{name}.ckpt").is_file()), None)


def _link(source: Path, target: Path) -> None:
    """A second name for a file, put in place in one move; a copy where links are not possible."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        temporary.write_bytes(source.read_bytes())
    os.replace(temporary, target)
