"""What `mmtok.evaluate` does for video tokenizers: clips of shards in; metrics.json, a table, plots and the report."""

from __future__ import annotations

from collections.abc import Sequence

from mmtok.metrics.base import KeyCount
from mmtok.metrics.evaluation import Plan
from mmtok.metrics.video.anchors import TITLES
from mmtok.metrics.video.evaluation import VideoEvaluation
from mmtok.report.video_result import VideoResult
from mmtok.tokenizer import Tokenizer

METRICS = ("psnr", "ssim", "lpips_alex")


def plan_video(
    lengths: Sequence[int], metrics: Sequence[str] | None, codecs: Sequence[str] | None, samples: int, rounding: str,
    frechet_of_codecs: bool = False,
) -> Plan:
    """The plan; None takes the default metrics, and every codec."""
    return Plan(
        tuple(lengths), METRICS if metrics is None else tuple(metrics), tuple(TITLES if codecs is None else codecs),
        samples, rounding, frechet_of_codecs,
    )


def evaluate_video(
    tokenizer: Tokenizer, data: str | list[str], plan: Plan, frames: int | None, fps: float | None, side: int | None,
    batch_size: int, workers: int, limit: int | None, only: Sequence[str], device: str, weights: object, rank: int,
    world: int, quiet: bool,
) -> VideoResult:
    """Measures the central clip of every video of some shards or of `samples:video`, short side to `side`, centre cut.

    frames, fps, side: None takes the model's (its frames per second: those of each file when the model states none).
    """
    from rich.progress import track

    from mmtok.data.video_module import VideoData, check_clips
    from mmtok.evaluate_audio import chosen

    if limit is not None and limit < 1:
        raise ValueError(f"limit: must be at least 1, got {limit}")
    count, height = frames or tokenizer.size[0], side or tokenizer.size[1]
    rate = fps or tokenizer.spec.rate
    check_clips(tokenizer, [count], height)
    module = VideoData(
        data, frames=count, fps=rate, image_size=height, eval_batch_size=min(batch_size, 4), num_workers=workers
    )
    loader = module.eval_loader("data", data, rank, world)
    reader, expected = loader.dataset.items.reader, KeyCount()
    names = [reader.key(sample) for sample in range(len(reader.index))]
    samples = chosen(names, only)[:limit]
    loader.dataset.samples = samples[rank::world]
    expected.update(names[sample] for sample in samples)
    run = VideoEvaluation(tokenizer, (count, height, height), plan, device, weights, rate)  # type: ignore[arg-type]
    for batch in track(loader, "evaluate", total=len(loader), disable=quiet or rank > 0):
        run.update(batch)
    run.skip(loader.bad.total())
    result = run.finish(expected)
    at = "the frames of each file" if rate is None else f"{rate:g} frames a second by timestamp"
    clips = f"central {count} frames at {at}, short side to {height} (bicubic), central square"
    result.protocol = {"clips": clips, **result.protocol}
    return result
