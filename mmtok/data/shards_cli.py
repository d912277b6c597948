"""`mmtok shards make` and `mmtok shards check` as plain functions."""

from __future__ import annotations

from pathlib import Path

from mmtok.data.check import CheckReport, check_shards
from mmtok.data.tiles import Tiling
from mmtok.data.write import Encoding, Report, make_samples, make_shards


def make(
    source: str,
    destination: str,
    samples_per_shard: int = 1000,
    shard_bytes: int = 1 << 30,
    short_side: int | None = None,
    quality: int = 95,
    workers: int = 1,
    shuffle: bool = True,
    seconds: float | None = None,
    gop: float = 1.0,
    tile: int | None = None,
    tile_detail: float = 0.0,
    root: str | None = None,
) -> list[Report]:
    """Write WebDataset shards and their index.json.

    Args:
        source: a folder, a folder of class folders, a .csv/.tsv/.jsonl manifest (path, text, ...), Parquet, or
            a sample set: samples:image, samples:audio, samples:video.
        destination: a new or empty folder. A sample set makes train/ and heldout/ in it.
        samples_per_shard: at most this many samples a shard.
        shard_bytes: and at most this many bytes of media.
        short_side: resize larger images and videos to this short side, stored as JPEG and H.264; by default bytes
            are kept.
        quality: of that JPEG, 1 to 100.
        workers: processes.
        seconds: cut videos into clips of this length, encoded anew (a short rest joins the clip before).
        gop: at most so many seconds between key frames of such clips.
        tile: cut images into squares of this side, at their size and at halvings of it: small crops of large
            photographs then need no large decode.
        tile_detail: leave out tiles of finer scales below this mean step between neighbours (grey levels).
        root: folder below which the paths of a manifest must lie; by default the manifest's own.
        shuffle: mix the samples once while writing (a fixed order); Parquet keeps its own.

    ValueError when the destination holds anything, or the source is unusable.
    """
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side: at least 1 pixel, got {short_side}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality: 1 to 100, got {quality}")
    if seconds is not None and seconds <= 0 or gop <= 0:
        raise ValueError(f"seconds and gop: positive, got {seconds} and {gop}")
    tiling = None if tile is None else Tiling(tile, tile_detail)
    folder = Path(destination).expanduser()
    if source.startswith("samples:"):
        return make_samples(source, folder, short_side, quality, workers, tiling)
    encoding = Encoding(short_side, quality, seconds, gop, tiling)
    bounds = None if root is None else Path(root).expanduser()
    return [make_shards(source, folder, samples_per_shard, shard_bytes, encoding, workers, shuffle, root=bounds)]


def check(folder: str, rewrite: bool = False, workers: int = 1) -> CheckReport:
    """Decode every sample of a folder of shards, and write index.json where there is none.

    Args:
        folder: holds the .tar files.
        rewrite: replace an index.json that is there.
        workers: processes.
    """
    return check_shards(Path(folder).expanduser(), rewrite, workers)


def describe(report: Report | CheckReport) -> str:
    """A report as text for the terminal."""
    lines = [f"{report.folder}: {report.shards} shards, {report.samples} samples, {report.bytes / 1e6:.1f} MB"]
    if isinstance(report, CheckReport):
        total = max(1, sum(report.histogram.values()))
        for edge, count in report.histogram.items():
            lines.append(f"  short side >= {edge:5d} px {count:8d}  {'#' * round(40 * count / total)}")
        total = max(1, sum(report.lengths.values()))
        for edge, count in report.lengths.items():
            lines.append(f"  length     >= {edge:5d} s  {count:8d}  {'#' * round(40 * count / total)}")
        if report.lengths:
            lines.append(f"  {report.hours:.2f} hours of audio")
        lines += [f"  problem: {problem}" for problem in report.problems]
        lines += [f"  bad: {shard} {key}: {reason}" for shard, key, reason in report.bad]
        if report.wrote:
            lines.append("  wrote index.json")
    else:
        lines += [f"  left out: {key}: {reason}" for key, reason in report.bad]
    return "\n".join(lines)
