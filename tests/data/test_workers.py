"""Data workers ignore the signals of their parent and die with it, under every start method."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, sys, time
from mmtok.data import ShardData

def main():
    module = ShardData(sys.argv[1], batch_size=2, image_size=16, num_workers=2, start_method=sys.argv[2])
    batches = iter(module.train_loader(0, 1))
    next(batches), next(batches)  # one of each: both have begun
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
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
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert main.stdin is not None and main.stdout is not None
    try:
        workers = [int(word) for word in main.stdout.readline().split()]
        assert len(workers) == 2
        for number, pid in itertools.product((signal.SIGINT, signal.SIGUSR1, signal.SIGTERM), workers):
            os.kill(pid, number)
        for _ in range(8):  # more than was prefetched
            main.stdin.write("\n")
            main.stdin.flush()
            assert main.stdout.readline() == "batch\n"
        assert all(alive(pid) for pid in workers)
        main.kill()
        main.wait()
        end = time.monotonic() + 20
        while any(alive(pid) for pid in workers) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(alive(pid) for pid in workers)
    finally:
        main.kill()
        main.wait()
        for stream in (main.stdin, main.stdout):
            stream.close()
