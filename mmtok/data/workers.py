"""What a helper process does first, so that it neither dies with a signal meant for its parent nor outlives it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
GRACE = 60  # seconds that SIGTERM leaves a worker: its parent needs the last batches to stop in order


@contextmanager
def starting(method: str | None) -> Iterator[None]:
    """Around the start of data workers by `method` (None is the platform's own): their signals wait until `begin`.

    torchrun and srun send SIGTERM to every process of a rank. It would end workers that are still importing, and at any
    time the server of the forkserver method, without which its workers count as dead. What is started here inherits the
    blocked signals; those to this process itself are delivered afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        if (method or multiprocessing.get_start_method()) != "fork":
            resource_tracker.ensure_running()  # unblocks SIGINT and SIGTERM after its start, in some versions of Python
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(*_: Any) -> None:
    """The first call in a data worker (`worker_init_fn`): `follow_parent`, and no reaction to its signals.

    Schedulers send their warning to every process of a job, and Ctrl-C reaches the whole group; the parent decides what
    follows, and still needs the batches that are being made.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    follow_parent()


def follow_parent() -> None:
    """Ends this process when the one that asked for it ends, killed or not, under every start method.

    A forkserver's children have another parent in the process table, so it is the sentinel that is watched.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)  # at once: nobody is left to take what this worker is making
