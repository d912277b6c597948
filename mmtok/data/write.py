"""Shards from a source: parallel, atomic, never over something that exists."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import webdataset
from PIL import Image
from tqdm import tqdm

from mmtok.data.bad import BadSample
from mmtok.data.clips import Cutting, camera_path, cut
from mmtok.data.decode import EncodedImage
from mmtok.data.features import read_array
from mmtok.data.index import Shard, file_sha256, make_shard, safe_key, save_index
from mmtok.data.media import IMAGES, MEDIA, VIDEOS, examine
from mmtok.data.order import mix
from mmtok.data.samples import HELDOUT, TRAIN
from mmtok.data.sources import Item, read_items, sample_items
from mmtok.data.tiles import Tiling
from mmtok.data.workers import follow_parent

SAMPLE_SECONDS = 2.0  # of training clips of sample videos


@dataclass
class Report:
    """What was written. `bad` lists (key, reason) of samples that were left out."""

    folder: Path
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Encoding:
    """How media bytes enter a shard.

    short_side  images whose short side is larger are resized to it (Lanczos) and stored as JPEG; None keeps bytes
    quality     of that JPEG
    seconds     videos are cut into clips of so many seconds and encoded anew; None does so only to reduce their size
    gop         most seconds between the key frames of such clips
    tiling      cuts images into tiles, after `short_side`; every tile becomes a sample
    """

    short_side: int | None = None
    quality: int = 95
    seconds: float | None = None
    gop: float = 1.0
    tiling: Tiling | None = None


def make_shards(
    source: str, folder: Path, samples_per_shard: int = 1000, shard_bytes: int = 1 << 30,
    encoding: Encoding = Encoding(), workers: int = 1, shuffle: bool = True, progress: bool = True,
    root: Path | None = None,
) -> Report:
    """Write shards and index.json of a source into a new or empty folder; `root` as in `read_items`.

    Images (a JPEG at 1/8), audio and videos are decoded once, unusable ones left out and reported. With `shuffle`
    samples are laid out in a fixed pseudo-random order, so that a window of shards mixes classes; Parquet keeps its
    own.
    """
    items = read_items(source, root)
    if shuffle and not _is_parquet(source):
        listed = list(items)
        order = sorted(range(len(listed)), key=lambda number: mix(0, number))
        items = iter([listed[number] for number in order])
    return _write(items, folder, samples_per_shard, shard_bytes, encoding, workers, progress)


def make_samples(
    name: str, folder: Path, short_side: int | None = None, quality: int = 95, workers: int = 1,
    tiling: Tiling | None = None,
) -> list[Report]:
    """folder/train and folder/heldout of a sample set; held-out samples always keep their bytes."""
    reports = []
    training = Encoding(short_side, quality, SAMPLE_SECONDS, tiling=tiling)
    for split, encoding in ((TRAIN, training), (HELDOUT, Encoding())):
        items = sample_items(name, split)
        if items:
            report = _write(iter(items), folder / split, 1000, 1 << 30, encoding, workers, progress=False)
            if report.bad:
                key, reason = report.bad[0]
                raise ValueError(f"{name}: {key} cannot be decoded ({reason}); reinstall its package")
            reports.append(report)
    return reports


def _write(
    items: Iterator[Item], folder: Path, samples_per_shard: int, shard_bytes: int, encoding: Encoding,
    workers: int, progress: bool,
) -> Report:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: already there and not empty; remove it or choose another destination")
    if samples_per_shard < 1 or shard_bytes < 1 or workers < 1:
        raise ValueError("shards make: samples_per_shard, shard_bytes and workers must be at least 1")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        report, shards = Report(folder), []
        jobs = _unique_keys(items, samples_per_shard, shard_bytes)
        with tqdm(unit=" samples", desc=str(folder), disable=not (progress and sys.stderr.isatty())) as bar:
            for shard, bad in _run(jobs, partial, encoding, workers):
                bar.update(len(shard) + len(bad))
                report.bad += bad
                if len(shard):
                    shards.append(shard)
        if not shards:
            why = f"; the first is {report.bad[0][0]} ({report.bad[0][1]})" if report.bad else ""
            raise ValueError(f"{folder}: the source has no usable sample{why}")
        save_index(partial, shards)
        os.replace(partial, folder)  # fails rather than overwrite, should the folder have been filled meanwhile
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    report.shards, report.samples = len(shards), sum(len(s) for s in shards)
    report.bytes = sum(s.bytes for s in shards)
    return report


def _run(
    jobs: Iterator[tuple[int, list[Item]]], folder: Path, encoding: Encoding, workers: int
) -> Iterator[tuple[Shard, list[tuple[str, str]]]]:
    """Results in job order, with a bounded number of jobs in memory."""
    if workers == 1:
        for number, items in jobs:
            yield _write_shard(number, items, folder, encoding)
        return
    pending: deque[Future[tuple[Shard, list[tuple[str, str]]]]] = deque()
    # spawn: forking a process that already runs torch threads can deadlock
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=follow_parent) as pool:
        for number, items in jobs:
            pending.append(pool.submit(_write_shard, number, items, folder, encoding))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _unique_keys(items: Iterable[Item], count: int, size: int) -> Iterator[tuple[int, list[Item]]]:
    """Numbered groups of items for one shard each; keys made safe and unique."""
    seen: set[str] = set()
    group: list[Item] = []
    total = 0
    number = itertools.count()
    for item in items:
        base = item.key = safe_key(item.key)
        for again in itertools.count(2):
            if item.key not in seen:
                break
            item.key = f"{base}-{again}"
        seen.add(item.key)
        if item.data is not None:
            weight = len(item.data)
        else:
            weight = item.path.stat().st_size if item.path and item.path.is_file() else 0
        if group and (len(group) >= count or total + weight > size):
            yield next(number), group
            group, total = [], 0
        group.append(item)
        total += weight
    if group:
        yield next(number), group


def _write_shard(
    number: int, items: list[Item], folder: Path, encoding: Encoding
) -> tuple[Shard, list[tuple[str, str]]]:
    """One tar, and (key, reason) of the items left out of it."""
    path = folder / f"{number:06d}.tar"
    keys: list[str] = []
    rows: list[dict[str, tuple[int, int]]] = []
    sizes: list[tuple[int, int]] = []
    bad: list[tuple[str, str]] = []
    with open(path, "wb") as file:
        # mtime 0: the same source gives the same bytes
        writer = webdataset.TarWriter(file, encoder=False, mtime=0, user="mmtok", group="mmtok", compress=False)
        for item in items:
            try:
                for key, members, size in _samples(item, encoding):
                    writer.write({"__key__": key, **members})
                    row, end = {}, writer.tarstream.offset
                    for ext in sorted(members, reverse=True):  # the writer lays members out in sorted order
                        length = len(members[ext])
                        end -= -(-length // 512) * 512
                        row[ext] = (end, length)
                        end -= 512
                    keys.append(key)
                    rows.append(row)
                    sizes.append(size)
            except BadSample as error:  # of a video that breaks off, the clips before that are kept
                bad.append((item.key, str(error)))
        writer.close()
    digest = file_sha256(path) if keys else ""
    shard = make_shard(path.name, path.stat().st_size, digest, keys, rows, sizes)
    if not keys:
        path.unlink()
    return shard, bad


def _samples(item: Item, encoding: Encoding) -> Iterator[tuple[str, dict[str, bytes], tuple[int, int]]]:
    """(key, members, what the index says of the media) of an item: one, or one a clip of a video that is cut."""
    if item.camera is not None:
        photo = EncodedImage(_bytes(item))
        film = camera_path(photo.pixels(min(photo.size) / 512), item.camera)
        yield item.key, *_members(replace(item, ext="mp4", data=film), Encoding())
        return
    if item.ext in IMAGES and encoding.tiling is not None:
        yield from _tiles(item, encoding, encoding.tiling)
        return
    cutting = Cutting(encoding.seconds, encoding.gop, encoding.short_side)
    if item.ext not in VIDEOS or cutting.keeps:
        yield item.key, *_members(item, encoding)
        return
    for number, clip in enumerate(cut(_bytes(item), cutting)):
        key = item.key if encoding.seconds is None else f"{item.key}-{number:04d}"
        made = replace(item, ext="mp4", data=clip.data, meta={**item.meta, **clip.meta})
        yield key, _beside(made, {"mp4": clip.data}), clip.size


def _bytes(item: Item) -> bytes:
    """The media of an item. Raises BadSample."""
    try:
        data = item.data if item.data is not None else item.path.read_bytes() if item.path else b""
    except OSError as error:
        raise BadSample("missing", error.strerror or str(error)) from None
    if not data:
        raise BadSample("empty", "0 bytes")
    return data


def _members(item: Item, encoding: Encoding) -> tuple[dict[str, bytes], tuple[int, int]]:
    """Members by extension, and what the index says of the media: see `examine`."""
    if item.ext not in MEDIA:
        raise BadSample("unsupported", f"extension .{item.ext}")
    data = _bytes(item)
    if item.ext in IMAGES and encoding.short_side:
        image = EncodedImage(data)
        if min(image.size) > encoding.short_side:
            pixels = _shrunk(image, encoding.short_side)
            return _beside(item, {"jpg": _jpeg(pixels, encoding.quality)}), (pixels.height, pixels.width)
    return _beside(item, {item.ext: data}), examine(item.ext, data)


def _tiles(
    item: Item, encoding: Encoding, tiling: Tiling
) -> Iterator[tuple[str, dict[str, bytes], tuple[int, int]]]:
    """As `_samples`, one a tile."""
    image = EncodedImage(_bytes(item))
    for name, tile in tiling(_shrunk(image, encoding.short_side or min(image.size))):
        members = _beside(item, {"jpg": _jpeg(tile, encoding.quality)})
        yield f"{item.key}-{name}", members, (tile.height, tile.width)


def _shrunk(image: EncodedImage, short_side: int) -> Image.Image:
    """Upright pixels with at most this short side. Raises BadSample."""
    (height, width), pixels = image.size, image.pixels()
    scale = short_side / min(height, width)
    if scale >= 1:
        return pixels
    return pixels.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)


def _jpeg(pixels: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    pixels.info.clear()  # no EXIF: the pixels are upright now
    pixels.save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def _beside(item: Item, members: dict[str, bytes]) -> dict[str, bytes]:
    """Media with the caption, the features and the json of their item. Raises BadSample."""
    for name, path in item.features.items():
        try:
            members[f"{name}.npy"] = data = path.read_bytes()
        except OSError as error:
            raise BadSample("missing", f"{path.name}: {error.strerror or error}") from None
        read_array(name, data)
    if item.text is not None:
        members["txt"] = item.text.encode()
    if item.meta:
        members["json"] = json.dumps(item.meta, default=str, sort_keys=True).encode()
    return members


def _is_parquet(source: str) -> bool:
    path = Path(source).expanduser()
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))
