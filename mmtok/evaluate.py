"""The evaluation command: a model and shards in; metrics.json, a table, plots and the report out.

Alone or under torchrun: every process evaluates its share, the first one writes.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from mmtok.metrics.base import KeyCount
from mmtok.metrics.evaluation import Evaluation, Plan, world_size
from mmtok.report.result import EvaluationResult

if TYPE_CHECKING:
    from mmtok.data.loader import EvalLoader
    from mmtok.data.transforms import Transform
    from mmtok.tokenizer import Tokenizer

METRICS = ("psnr", "ssim", "lpips_alex")
CODECS = ("jpeg", "webp", "avif")


def main(
    model: str | Path | Tokenizer,
    data: str,
    out: str | Path | None = None,
    lengths: tuple[int, ...] = (),
    metrics: tuple[str, ...] = METRICS,
    codecs: tuple[str, ...] = CODECS,
    batch_size: int = 32,
    image_size: int | None = None,
    transform: Transform | None = None,
    rounding: str = "round",
    samples: int = 6,
    frechet_of_codecs: bool = False,
    device: str = "cpu",
    weights: str | Path | None = None,
    num_workers: int = 2,
    command: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> EvaluationResult:
    """Evaluates a tokenizer on every image of some shards, all lengths in one pass.

    model       a name for `mmtok.load`, a saved folder, or a tokenizer
    data        shards, or `samples:image` (its held-out photographs)
    out         folder for metrics.json, plots/ and report/; None writes nothing
    lengths     tokens to evaluate; () takes powers of two and the full length
    metrics     of psnr, ssim, lpips_alex, lpips_vgg, fd_vgg16, rfid
    codecs      anchors measured beside the model, of jpeg, webp, avif; () for none
    image_size  side in pixels; None is the model's own
    transform   resize and crop preset of `mmtok.data.transforms`; None is CenterCrop()
    rounding    "round" or "truncate"
    weights     file or folder of third-party metric weights
    command     what the report says was run; None is this process's command line
    quiet       no progress bar and no table
    ValueError names the argument or file and the mend; existing results are kept unless `overwrite`.
    """
    target = None if out is None else Path(out)
    if target is not None and (target / "metrics.json").exists() and not overwrite:
        raise ValueError(f"out: {target / 'metrics.json'} exists; choose another folder or pass overwrite")
    plan = Plan(tuple(lengths), tuple(metrics), tuple(codecs), samples, rounding, frechet_of_codecs)
    rank, world, device = join(device)
    tokenizer = _tokenizer(model)
    size = (image_size, image_size) if image_size else tokenizer.size
    if tokenizer.modality != "image" or len(size) != 2 or size[0] != size[1]:
        raise ValueError(f"model: only square images are evaluated here, this is {tokenizer.modality} of size {size}")
    loader, preset = _loader(data, transform, size[0], batch_size, num_workers, rank, world)
    run = Evaluation(tokenizer, size, plan, device, weights)
    for batch in _progress(loader, quiet or rank > 0):
        run.update(batch)
    run.skip(loader.bad.total())
    result = run.finish(_expected(loader))
    result = replace(
        result, model=model if isinstance(model, str) else getattr(model, "name", type(model).__name__), data=data,
        command=command if command is not None else shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        protocol={"preset": f"{preset} to {size[0]} x {size[1]}", **result.protocol}, versions=versions(),
    )
    if rank == 0:
        if target is not None:
            from mmtok.report.page import write_report
            from mmtok.report.plots import write_plots

            write_plots(target / "plots", result)
            write_report(target / "report", result)
            result.write_json(target / "metrics.json")  # last: its presence says that the rest is complete
        if not quiet:
            from mmtok.report.table import print_table

            print_table(result)
    return result


def join(device: str) -> tuple[int, int, str]:
    """(rank, processes, device): joins the group when torchrun started this process. Sums travel over gloo."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(hours=12))  # ranks may end hours apart
    rank = dist.get_rank() if world_size() > 1 else 0
    if device == "cuda" and world_size() > 1:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return rank, world_size(), device


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    import PIL

    import mmtok

    return {
        "mmtok": mmtok.__version__, "python": platform.python_version(), "torch": torch.__version__,
        "pillow": PIL.__version__, "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def _tokenizer(model: str | Path | Tokenizer) -> Tokenizer:
    from mmtok.hub import load

    return load(model) if isinstance(model, str | Path) else model


def _loader(
    data: str, transform: Transform | None, side: int, batch_size: int, workers: int, rank: int, world: int
) -> tuple[EvalLoader, str]:
    """This process's batches and the name of the resize and crop."""
    from mmtok.data.module import ShardData
    from mmtok.data.transforms import CenterCrop

    transform = transform or CenterCrop()
    shards = ShardData(
        train=data, val=data, eval_batch_size=batch_size, image_size=side, eval_transform=transform,
        num_workers=workers,
    )
    return shards.eval_loader("data", data, rank, world), getattr(transform, "name", type(transform).__name__)


def _expected(loader: EvalLoader) -> KeyCount:
    """Every name in the index of the data."""
    reader, names = loader.dataset.items.reader, KeyCount()
    names.update(reader.key(sample) for sample in range(len(reader.index)))
    return names


def _progress(loader: EvalLoader, quiet: bool):  # type: ignore[no-untyped-def]
    from rich.progress import track

    return track(loader, "evaluate", total=len(loader), disable=quiet)
