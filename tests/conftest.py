"""Fixtures shared by the tests that train: toy shards, and fresh processes."""

import multiprocessing
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "training"))


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    from training_toys import write_shards

    return write_shards(tmp_path_factory.mktemp("toy") / "shards")


@pytest.fixture(scope="session")
def processes():
    """Starts functions in fresh processes; the imports are paid for once, in a server that forks."""
    # read by the server when it starts: several processes with several threads each would only fight
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmtok.training.cli", "mmtok.data.module", "torchvision", "training_toys"])

    def start(function, *args):
        process = context.Process(target=function, args=args)
        process.start()
        return process

    def run(function, *args, timeout=120):
        process = start(function, *args)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{function.__name__} did not end in {timeout} s")
        return process.exitcode

    run.start = start
    return run
