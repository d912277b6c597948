"""Ends a run that hangs, and names the process that holds it up.

Every process writes a small file `<run>/.ranks/<rank>.json` now and then: how far it is, where its main thread is, and
a beat that goes on even when the main thread waits for others. Collectives wait for the slowest, so when nothing moves
any more, the culprit is the process whose beat has stopped, or the one that is behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

EXIT_HUNG = 124  # as timeout(1)


@dataclass
class Pulse:
    """What a process says about itself.

    position  how many common points of the run it has passed: equal on all ranks that are equally far
    moves     grows with everything it finishes, validation batches included
    beat      grows as long as the process runs at all
    started   start time of the process in clock ticks, so that a reused process id is not mistaken for it
    """

    rank: int
    host: str
    pid: int
    started: int
    position: int = 0
    moves: int = 0
    beat: int = 0
    doing: str = "starting"
    where: str = ""


class Watch(pl.Callback):
    """Stops a run of several processes when none of them has finished anything for `timeout` seconds.

    timeout  seconds; longer than the slowest step, compilation included. null watches nothing

    The exit code is 124, and one line on stderr names the rank, its host and where it is. A process that has stopped
    (not only waits) is killed by those on its host, so that the scheduler sees the job end. A run of one process is
    warned.
    """

    def __init__(self, timeout: float | None = 900.0) -> None:
        if timeout is not None and timeout <= 0:
            raise ValueError("watch.timeout must be positive, or null")
        self.timeout = timeout
        self.pulse: Pulse | None = None
        self._ended = threading.Event()
        self._trainer: Any = None

    # ---- what the run passes ----------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.timeout is None:
            return
        self._trainer, self._ended = trainer, threading.Event()
        self.folder = Path(trainer.default_root_dir) / ".ranks"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pulse = Pulse(trainer.global_rank, socket.gethostname(), os.getpid(), _started(os.getpid()))
        self._main = threading.main_thread().ident
        self._write()
        threading.Thread(target=self._run, args=(self.timeout,), daemon=True).start()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._pass(f"step {trainer.global_step}", True)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._pass(f"after step {trainer.global_step}", True)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._pass("validation", True)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self._pass("validation", False)  # ranks may have different numbers of these

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._pass("end of validation", True)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._ended.set()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._ended.set()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._ended.set()
        if self.pulse is not None:
            self._file(self.pulse.rank).unlink(missing_ok=True)

    def _pass(self, doing: str, common: bool) -> None:
        if self.pulse is not None:
            self.pulse.doing = doing
            self.pulse.moves += 1
            self.pulse.position += common

    # ---- the thread that watches ------------------------------------------------------------------------------------

    def _run(self, timeout: float) -> None:
        assert self.pulse is not None
        tick = min(30.0, timeout / 20)
        quiet, last, seen = 0.0, -1, dict[int, Pulse]()
        before = time.monotonic()
        while not self._ended.wait(tick):
            now = time.monotonic()
            # a job that was itself suspended did not hang: a tick counts as two at most
            quiet, before = quiet + min(now - before, 2 * tick), now
            self.pulse.beat += 1
            self.pulse.where = self._place()
            self._write()
            if self.pulse.moves != last:
                quiet, last, seen = 0.0, self.pulse.moves, {}
            elif quiet > timeout / 2:
                others = self._read()
                if not seen:
                    seen = others
                elif any(p.moves != seen[r].moves for r, p in others.items() if r in seen):
                    quiet, seen = timeout / 2, others  # somebody still works, and we wait for it
                if quiet > timeout:
                    self._give_up(timeout, seen, others)
                    quiet, seen = 0.0, {}

    def _give_up(self, timeout: float, first: dict[int, Pulse], others: dict[int, Pulse]) -> None:
        assert self.pulse is not None
        world = self._trainer.world_size
        if world == 1:
            text = f"no step ended in {timeout:g} s; the main thread is at {self.pulse.where}"
            print(f"mmtok train: {text}", file=sys.stderr, flush=True)
            return
        stopped = [p for r, p in others.items() if r in first and p.beat == first[r].beat and p.pid != self.pulse.pid]
        silent = sorted(set(range(world)) - set(others))
        least = min(p.position for p in others.values())
        behind = stopped or ([] if silent else [p for p in others.values() if p.position == least])
        named = [f"rank {p.rank} on {p.host} (pid {p.pid}, {p.doing}, at {p.where or '?'})" for p in behind]
        named += [f"rank {rank} (no sign of it in {self.folder})" for rank in silent]
        what = "stopped" if stopped else "held up by" if len(named) < world else "all wait:"
        text = f"mmtok train: rank {self.pulse.rank}: no step ended in {timeout:g} s; {what} {', '.join(named)}"
        print(text, file=sys.stderr, flush=True)
        for p in stopped:
            if p.host == self.pulse.host and p.started == _started(p.pid):
                os.kill(p.pid, signal.SIGKILL)
        launcher = self._trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
        os._exit(EXIT_HUNG)  # the main thread waits inside a collective: nothing softer reaches it

    def _place(self) -> str:
        """File, line and function of the main thread: the innermost, and the innermost of mmtok."""
        frame, inner = sys._current_frames().get(self._main or 0), None
        while frame is not None:
            code = frame.f_code
            place = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}"
            inner = inner or place
            if f"{os.sep}mmtok{os.sep}" in code.co_filename:
                return place if place == inner else f"{inner} under {place}"
            frame = frame.f_back
        return inner or "?"

    def _file(self, rank: int) -> Path:
        return self.folder / f"{rank:05d}.json"

    def _write(self) -> None:
        assert self.pulse is not None
        temporary = self.folder / f".{self.pulse.rank}.{os.getpid()}"
        try:
            temporary.write_text(json.dumps(asdict(self.pulse)))
            os.replace(temporary, self._file(self.pulse.rank))
        except OSError:  # a full disk must not end the watching
            temporary.unlink(missing_ok=True)

    def _read(self) -> dict[int, Pulse]:
        assert self.pulse is not None
        found = {self.pulse.rank: Pulse(**asdict(self.pulse))}
        for rank in range(self._trainer.world_size):
            try:
                found.setdefault(rank, Pulse(**json.loads(self._file(rank).read_text())))
            except (OSError, ValueError, TypeError):
                continue
        return found


def _started(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return -1
