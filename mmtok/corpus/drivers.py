"""Who calls `tokenize_shard` for which shard: processes on this machine, ranks of a launcher, or Ray.

Every driver may be killed at any time and started again, alone or beside others: a shard is done when its record is
there, and doing one twice writes the same bytes.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal

import torch

from mmtok.corpus.job import Job, begin, record, shard_names
from mmtok.corpus.shard import tokenize_shard, tokenizer_of
from mmtok.corpus.summary import finish
from mmtok.data.urls import expand_urls
from mmtok.data.workers import follow_parent

RETRIES = 3  # deaths in a row without a finished shard after which a pool of processes gives up


def tokenize(
    shards: str | list[str], job: Job, workers: int = 1, driver: Literal["processes", "ray"] = "processes",
    progress: bool = True,
) -> dict[str, Any] | None:
    """Tokenizes this process's part of the shards, and the summary once all are done by whomever (None before that).

    shards   as in `data.train`: paths, folders, globs, brace lists, remote addresses
    workers  processes on this machine; 0 works in this one
    driver   "ray" hands the shards to a Ray cluster (its own retries, machines may come and go)

    Under torchrun (RANK, WORLD_SIZE), srun (SLURM_PROCID) or in a SLURM array (SLURM_ARRAY_TASK_ID) each process takes
    every world-th shard. ValueError for a mistake in the shards, the folder or the options.
    """
    named = shard_names(expand_urls(shards, "SHARDS"))
    rank, world = place()
    mine = list(named.items())[rank::world]
    todo = [(name, url) for name, url in mine if record(job, name) is None]
    begin(job, tokenizer_of(job).tokenizer_id)
    started, count = time.perf_counter(), len(mine) - len(todo)
    run = _ray if driver == "ray" else _processes if workers else _here
    for row in run(job, todo, workers):
        count += 1
        if progress:
            speed = row["codes"] / max(row["seconds"], 1e-9)
            print(f"{count}/{len(mine)} {row['name']}: {row['samples']} samples, {speed:.0f} codes/s", file=sys.stderr)
    return finish(job, list(named), time.perf_counter() - started)


def place() -> tuple[int, int]:
    """(rank, world) of this process, from the variables that launchers set."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
                        ("SLURM_PROCID", "SLURM_NTASKS")):  # fmt: skip
        if rank in os.environ and world in os.environ:
            first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0")) if "ARRAY" in rank else 0
            number, count = int(os.environ[rank]) - first, int(os.environ[world])
            if not 0 <= number < count:
                raise ValueError(f"{rank}={number} is outside {world}={count}: number the array 0 to {count - 1}")
            return number, count
    return 0, 1


def _here(job: Job, todo: list[tuple[str, str]], workers: int) -> Iterator[dict[str, Any]]:
    for name, url in todo:
        yield tokenize_shard(job, name, url)


def _processes(job: Job, todo: list[tuple[str, str]], workers: int) -> Iterator[dict[str, Any]]:
    """A killed worker breaks the pool; what was not finished goes to a new one."""
    left, deaths = dict(todo), 0
    # fork from a process that has imported everything and runs no threads: quick to start, safe with CUDA
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmtok.corpus.shard"])
    while left:
        count = min(workers, len(left))
        with ProcessPoolExecutor(count, context, initializer=_begin_worker, initargs=(count,)) as pool:
            futures = {pool.submit(tokenize_shard, job, name, url): name for name, url in left.items()}
            try:
                for future in as_completed(futures):
                    row = future.result()
                    del left[futures[future]]
                    deaths = 0
                    yield row
            except BrokenProcessPool:
                deaths += 1
                if deaths > RETRIES:
                    raise ValueError(
                        f"workers died {deaths} times in a row without finishing a shard (out of memory?); lower"
                        " --workers or --batch-size. Shards that are done stay"
                    ) from None
                print(f"a worker died: {len(left)} shards go to new ones", file=sys.stderr)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _begin_worker(count: int) -> None:
    """The first call in one of `count` processes, which share the cores: more threads only slow each other."""
    follow_parent()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))


def _ray(job: Job, todo: list[tuple[str, str]], workers: int) -> Iterator[dict[str, Any]]:
    try:
        import ray
    except ImportError:
        raise ValueError("--driver ray needs Ray: pip install 'mmtok[ray]'") from None
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
    gpus = 1 if job.device.startswith("cuda") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1)(tokenize_shard)
    waiting = [task.remote(job, name, url) for name, url in todo]
    while waiting:
        (done, *_), waiting = ray.wait(waiting, num_returns=1)
        try:
            yield ray.get(done)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, ValueError) else error from None
