"""Data workers ignore the signals of their parent and die with it, under every start method."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing.forkserver, os, signal, sys, time
from mmtok.data import ShardData
from mmtok.data.workers import SIGNALS

def main():
    module = ShardData(sys.argv[1], batch_size=2, image_size=16, num_workers=2, start_method=sys.argv[2])
    loader = module.train_loader(0, 1)
    told = []
    for number in SIGNALS:  # as the checkpoint callback does
        signal.signal(number, lambda number, _: told.append(number))
    loader._start(0)
    loader._next = 0
    os.killpg(0, signal.SIGTERM)  # before the workers have set anything up
    batches = iter(loader)
    next(batches), next(batches)  # one of each: both have begun
    assert told == [signal.SIGTERM]
    helpers = [p.pid for p in multiprocessing.active_children()]
    if sys.argv[2] == "forkserver":
        helpers.append(multiprocessing.forkserver._forkserver._forkserver_pid)
    print(*helpers, flush=True)
    for line in sys.stdin:  # one batch a line
        next(batches)
        print("batch", flush=True)

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["mmtok.data.module"])
    main()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_outlive_signals_but_not_their_parent(shards: Path, tmp_path: Path, method: str) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    main = subprocess.Popen(
        [sys.executable, str(script), str(shards), method], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )
    assert main.stdin is not None and main.stdout is not None
    try:
        helpers = [int(word) for word in main.stdout.readline().split()]
        assert len(helpers) == 2 + (method == "forkserver")  # its server: without it torch takes the workers for dead
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):  # to all, as torchrun does
            os.killpg(main.pid, number)
        for _ in range(8):  # more than was prefetched
            main.stdin.write("\n")
            main.stdin.flush()
            assert main.stdout.readline() == "batch\n"
        assert all(alive(pid) for pid in helpers)
        main.kill()
        main.wait()
        end = time.monotonic() + 20
        while any(alive(pid) for pid in helpers) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(alive(pid) for pid in helpers)
    finally:
        main.kill()
        main.wait()
        for stream in (main.stdin, main.stdout):
            stream.close()
