"""The evaluation command: a model and shards in; metrics.json, a table, plots and the report out.

Alone or under torchrun: every process evaluates its share, the first one writes.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from mmtok.console import Parser, one_line
from mmtok.metrics.base import KeyCount
from mmtok.metrics.evaluation import Evaluation, Plan, world_size
from mmtok.report.result import EvaluationResult

if TYPE_CHECKING:
    from mmtok.data.loader import EvalLoader
    from mmtok.tokenizer import Tokenizer

METRICS = ("psnr", "ssim", "lpips_alex")
CODECS = ("jpeg", "webp", "avif")
PRESETS = ("resize_center_bicubic", "resize_center_bilinear", "resize_center_lanczos", "adm_center")


def main(
    model: str | Path | Tokenizer,
    data: str | list[str],
    out: str | Path | None = None,
    lengths: tuple[int, ...] = (),
    metrics: tuple[str, ...] | None = None,
    codecs: tuple[str, ...] | None = None,
    batch_size: int = 32,
    image_size: int | None = None,
    preset: str = PRESETS[0],
    rounding: str = "round",
    limit: int | None = None,
    only: tuple[str, ...] = (),
    samples: int = 6,
    frechet_of_codecs: bool = False,
    device: str = "cpu",
    weights: str | Path | None = None,
    num_workers: int = 2,
    name: str | None = None,
    command: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    frames: int | None = None,
    fps: float | None = None,
) -> EvaluationResult:
    """Evaluates a tokenizer on every image or utterance of some data, all lengths in one pass.

    model       a name for `mmtok.load`, a saved folder, or a tokenizer
    data        shards, or `samples:image`, `samples:audio`, `samples:video` (their held-out part); or a folder of
                audio files
    out         folder for metrics.json, plots/ and report/; None writes nothing
    lengths     tokens (codebooks, for residual codecs) to evaluate; () takes powers of two and the full length
    metrics     of psnr, ssim, lpips_alex, lpips_vgg, fd_vgg16, rfid (of video instead: rfvd_i3dts, rfvd_i3dtats,
                rfvd_videomae); for codecs see `mmtok.metrics.audio.suite.NAMES`
    codecs      anchors measured beside the model, of jpeg, webp, avif; x264, x265, svtav1 for video; opus, codec2 for
                codecs; () for none
    frechet_of_codecs  Frechet distances of image and video codecs too: a network pass for each of their settings
    image_size  side in pixels; None is the model's own
    preset      resize and crop, one of `PRESETS`
    rounding    "round" or "truncate"
    limit       only the first so many items
    only        only the items whose name matches one of these patterns, e.g. "it_*"
    samples     images shown, or utterances played, in the report
    weights     file or folder of third-party metric weights
    name        what the report calls the model; None is `model` itself
    command     what the report says was run; None is this process's command line
    quiet       no progress bar and no table
    frames, fps of clips; None is the model's own
    ValueError names the argument or file and the mend; existing results are kept unless `overwrite`.
    """
    target = None if out is None else Path(out)
    if target is not None and (target / "metrics.json").exists() and not overwrite:
        raise ValueError(f"out: {target / 'metrics.json'} exists; choose another folder or pass overwrite")
    rank, world, device = join(device)
    tokenizer = _tokenizer(model)
    if tokenizer.modality == "audio":
        from mmtok.evaluate_audio import evaluate_audio, plan_audio

        audio = plan_audio(lengths, metrics, codecs, samples)
        found = evaluate_audio(tokenizer, data, audio, device, weights, limit, only, rank, world, quiet)
        result = _named(found, model, data, name, command)
        _write(result, target if rank == 0 else None, quiet or rank > 0)
        return result
    if tokenizer.modality == "video":
        from mmtok.evaluate_video import evaluate_video, plan_video

        video = plan_video(lengths, metrics, codecs, samples, rounding, frechet_of_codecs)
        clips = evaluate_video(
            tokenizer, data, video, frames, fps, image_size, batch_size, num_workers, limit, only, device, weights,
            rank, world, quiet,
        )  # fmt: skip
        result = _named(clips, model, data, name, command)
        _write(result, target if rank == 0 else None, quiet or rank > 0)
        return result
    plan = Plan(
        tuple(lengths), METRICS if metrics is None else tuple(metrics), CODECS if codecs is None else tuple(codecs),
        samples, rounding, frechet_of_codecs,
    )
    size = (image_size, image_size) if image_size else tokenizer.size
    if tokenizer.modality != "image" or len(size) != 2 or size[0] != size[1]:
        raise ValueError(f"model: only square images are evaluated here, this is {tokenizer.modality} of size {size}")
    loader, expected = eval_loader(data, preset, size[0], batch_size, num_workers, limit, only, rank, world)
    run = Evaluation(tokenizer, size, plan, device, weights)
    for batch in _progress(loader, quiet or rank > 0):
        run.update(batch)
    run.skip(loader.bad.total())
    result = run.finish(expected)
    result = _named(result, model, data, name, command)
    result = replace(result, protocol={"preset": f"{preset} to {size[0]} x {size[1]}", **result.protocol})
    _write(result, target if rank == 0 else None, quiet or rank > 0)
    return result


def _named(
    result: EvaluationResult, model: str | Path | Tokenizer, data: str | list[str], name: str | None,
    command: str | None,
) -> EvaluationResult:
    """The result with what was evaluated, on what, by which command and versions."""
    return replace(
        result, model=name or (str(model) if isinstance(model, str | Path) else type(model).__name__),
        data=data if isinstance(data, str) else " ".join(data),
        command=command if command is not None else shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        versions=versions(),
    )


def _write(result: EvaluationResult, target: Path | None, quiet: bool) -> None:
    """Files below `target`, unless it is None, and the table, unless quiet."""
    if target is not None:
        from mmtok.report.page import write_report
        from mmtok.report.plots import write_plots

        write_plots(target / "plots", result)
        write_report(target / "report", result)
        result.write_json(target / "metrics.json")  # last: its presence says that the rest is complete
    if not quiet:
        from mmtok.report.table import print_table

        print_table(result)


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


def eval_loader(
    data: str | list[str], preset: str, side: int, batch_size: int, workers: int, limit: int | None,
    only: tuple[str, ...], rank: int, world: int,
) -> tuple[EvalLoader, KeyCount]:
    """This process's batches, and every name that all processes together must see."""
    from mmtok.data.module import ShardData
    from mmtok.data.transforms import AdmCenterCrop, CenterCrop

    if preset not in PRESETS:
        raise ValueError(f'preset: expected one of {", ".join(PRESETS)}, got "{preset}"')
    if limit is not None and limit < 1:
        raise ValueError(f"limit: must be at least 1, got {limit}")
    transform = AdmCenterCrop() if preset == "adm_center" else CenterCrop(preset.rpartition("_")[2])
    shards = ShardData(
        train=data, val=data, eval_batch_size=batch_size, image_size=side, eval_transform=transform,
        num_workers=workers,
    )
    loader = shards.eval_loader("data", data, rank, world)
    reader, expected = loader.dataset.items.reader, KeyCount()
    samples: Sequence[int] = range(len(reader.index))
    if only:
        from mmtok.evaluate_audio import chosen

        samples = chosen([reader.key(sample) for sample in samples], only)
    samples = samples[:limit]
    loader.dataset.samples = samples[rank::world]
    expected.update(reader.key(sample) for sample in samples)
    return loader, expected


def _progress(loader: EvalLoader, quiet: bool):  # type: ignore[no-untyped-def]
    from rich.progress import track

    return track(loader, "evaluate", total=len(loader), disable=quiet)


def command_line(
    description: str, metrics: tuple[str, ...] | None = None, codecs: tuple[str, ...] | None = None,
    args: list[str] | None = None, prog: str | None = None,
) -> int:
    """`main` with arguments from the command line; returns the exit code (2 for a user's mistake)."""
    parser = Parser(prog, description=description)
    parser.add_argument("--model", required=True, help="catalogue name, folder, or hf:owner/name")
    parser.add_argument("--data", required=True, nargs="+", help="shards, their folder, samples:..., or audio files")
    parser.add_argument("--out", type=Path, help="folder for metrics.json, plots/ and report/")
    parser.add_argument("--lengths", type=int, nargs="+", default=(), help="default: powers of two and the full length")
    parser.add_argument(
        "--metrics", nargs="+", default=metrics, help="images: psnr ssim lpips_alex lpips_vgg fd_vgg16 rfid;"
        " video: rfvd_i3dts rfvd_i3dtats rfvd_videomae in place of rfid;"
        " audio: distillmos dnsmos utmos pesq stoi estoi si_sdr mel mel80 stft f0 wer speaker",
    )
    parser.add_argument(
        "--codecs", nargs="*", default=codecs,
        help="images: jpeg webp avif; audio: opus codec2; video: x264 x265 svtav1",
    )
    parser.add_argument("--size", type=int, help="side in pixels (default: the model's)")
    parser.add_argument("--preset", default=PRESETS[0], help="resize and crop: " + ", ".join(PRESETS))
    parser.add_argument("--rounding", default="round", help="how floats become 8 bits: round, or truncate to compare")
    parser.add_argument("--frames", type=int, help="of clips (default: the model's)")
    parser.add_argument("--fps", type=float, help="of clips (default: the model's)")
    parser.add_argument("--limit", type=int, help="only the first so many items")
    parser.add_argument("--only", nargs="+", default=(), help="only names that match one of these patterns")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path, help="file or folder of metric weights")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    try:
        options = parser.parse_args(args)
        data = options.data if len(options.data) > 1 else options.data[0]
        main(
            options.model, data, options.out, tuple(options.lengths), options.metrics, options.codecs,
            options.batch_size, options.size, options.preset, options.rounding, options.limit, tuple(options.only),
            device=options.device,
            weights=options.weights, num_workers=options.workers, overwrite=options.overwrite,
            frames=options.frames, fps=options.fps,
        )
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0
