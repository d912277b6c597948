"""Processes of a small run that are hurt in a chosen way, for tests/distributed and the soak."""

import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from training_toys import config, write_config

from mmtok.training.checkpoint_io import AtomicIO, read_manifest
from mmtok.training.cli import main
from mmtok.training.steps import average_gradients


class Fault(Callback):
    """Hurts this process once, at the start of global batch `at` (0-based); "nan" spoils `times` batches from there on.

    what  "nan", "hang", or the name of a signal it sends to itself; "SIGTERM in validation" at the first batch of one;
          "look" hurts nothing and writes what training starts from to <run>/start.pt
    rank  the only process it hurts, where all have one configuration
    start the only one of torchrun's starts in which it hurts, from 0
    """

    def __init__(self, what: str, at: int, times: int = 1, rank: int | None = None, start: int = 0) -> None:
        self.what, self.at, self.times, self.rank, self.start = what, at, times, rank, start

    def on_train_start(self, trainer, pl_module):
        if self.what == "look":
            state = {"state_dict": pl_module.state_dict(), "ema": pl_module.ema.state_dict()}
            torch.save(state, Path(trainer.default_root_dir) / "start.pt")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if self.rank not in (None, trainer.global_rank) or self.start != start:
            return
        if self.what == "nan" and self.at <= pl_module.batches < self.at + self.times:
            batch.x.fill_(float("nan"))
        elif pl_module.batches == self.at:
            if self.what == "hang":
                time.sleep(600)
            elif self.what.startswith("SIG") and " " not in self.what:
                os.kill(os.getpid(), getattr(signal, self.what))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.what == "SIGTERM in validation" and batch_idx == 0 and trainer.global_step >= self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_rank(folder: Path, shards: Path, name: str, rank: int, world: int, fault=None, **dotted) -> str:
    """The configuration of one rank; `fault` is the init_args of Fault, or several of them."""
    node = config(shards, name=name, runs=str(folder), trainer__devices=world, **dotted)
    node["data"]["init_args"].setdefault("batch_size", 4)
    callbacks = [{"class_path": "training_toys.Recorder", "init_args": {"path": str(folder / f"{name}.{rank}.keys")}}]
    for one in [fault] if isinstance(fault, dict) else fault or []:
        callbacks.append({"class_path": "fault_toys.Fault", "init_args": one})
    node["trainer"]["callbacks"] = callbacks
    return write_config(folder / f"{name}.{rank}.yaml", node)


def run_rank(rank: int, world: int, port: int, path: str, *extra: str) -> None:
    """`mmtok train` as rank `rank`, as torchrun would start it; stderr goes to <path>.err."""
    os.dup2(os.open(f"{path}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    if world > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    main(["fit", "-c", path, "--name", Path(path).name.split(".")[0], *extra])


def save(folder: Path, step: int, size: int = 1000) -> Path:
    """A checkpoint of one tensor as last.ckpt."""
    checkpoint = {"global_step": step, "x": torch.full((size,), float(step))}
    AtomicIO().save_checkpoint(checkpoint, folder / "last.ckpt")
    return folder / "last.ckpt"


def save_with_a_limit(folder: str) -> None:
    """The kernel refuses the write half-way, inside torch.save; exit code 7 when that is a clean error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save(Path(folder), 2, size=1 << 20)
    except OSError as error:
        os._exit(7 if "could not be written" in str(error) else 8)


def save_forever(folder: str) -> None:
    """One checkpoint after the other, until killed."""
    rows = read_manifest(Path(folder))
    for step in range(rows[0]["step"] + 1 if rows else 1, 1_000_000):
        save(Path(folder), step, size=300_000)


def average_on(rank: int, port: int, folder: str) -> None:
    """Averages gradients that differ by rank, in buckets of a few numbers, and saves them."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 5, 2, 4)]
    parameters.append(torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    for n, parameter in enumerate(parameters):
        # the third has a gradient on rank 1 only, the fourth nowhere
        if n != 3 and (n != 2 or rank == 1):
            parameter.grad = torch.full_like(parameter, float(10 * n + 4 * rank + 2))
    average_gradients(parameters, bucket_bytes=24)
    torch.save([p.grad for p in parameters], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


class Job:
    """Starts the ranks of a run in fresh processes, waits for all, and gives exit codes and what they said."""

    def __init__(self, start, folder: Path, shards: Path) -> None:
        self.start, self.folder, self.shards = start, folder, shards
        self.codes: list[int | None] = []
        self.said: list[str] = []

    def run(self, name: str, world: int, *extra: str, fault=None, hurt: int = 0, timeout: float = 60, **dotted):
        port = free_port()
        paths = [
            write_rank(self.folder, self.shards, name, rank, world, fault if rank == hurt else None, **dotted)
            for rank in range(world)
        ]
        ranks = [self.start(run_rank, rank, world, port, path, *extra) for rank, path in enumerate(paths)]
        end = time.monotonic() + timeout
        for process in ranks:
            process.join(max(0.1, end - time.monotonic()))
        for process in ranks:
            if process.exitcode is None:
                process.kill()
        self.codes = [process.exitcode for process in ranks]
        self.said = [Path(f"{path}.err").read_text() for path in paths]
        return self.codes

    def checkpoint(self, name: str) -> dict:
        return torch.load(self.folder / name / "checkpoints/last.ckpt", weights_only=True)
