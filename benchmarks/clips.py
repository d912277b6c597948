"""Clip sampling from shards: VideoData's training loader against a bare PyAV loop over the same shard.

    python benchmarks/clips.py [--shards FOLDER] [--json clips.json]

Without a folder `samples:video` is written to shards first. Both sides run the same batches in the same number of
worker processes, one decoding thread each, in turn, several rounds in one process; the medians are compared. Quote only
figures of an otherwise idle machine. Bar: at least 0.9 of the bare loop.

  ours  VideoData.train_loader: global order, reads by offset, frames chosen by timestamp, float batches
  bare  is told which bytes of the tar, which timestamps and which window: opens each member with PyAV, seeks, decodes,
        converts to RGB and resizes in one step, cuts. Where PyAV is our reader too, both give the same pixels (checked)
"""

from __future__ import annotations

import argparse
import io
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from output import write
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmtok.data import VideoData
from mmtok.data.batches import TrainBatches
from mmtok.data.decode import to_float
from mmtok.data.decode_torchcodec import usable
from mmtok.data.decode_video import EXTENSIONS, EncodedVideo, Fit
from mmtok.data.order import Slot, mix
from mmtok.data.shards_cli import make
from mmtok.data.video import VideoItems, choose_frames

HOW = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT  # as the reader's


@dataclass(frozen=True)
class Wanted:
    """A clip: bytes [offset, offset + size) of a file, seconds of its frames, and how they become pictures."""

    path: str
    offset: int
    size: int
    seconds: tuple[float, ...]
    fit: Fit


def wanted(data: TrainBatches, slot: Slot) -> list[Wanted]:
    """What the loader will take for a batch; found out beforehand, so that the bare loop need not."""
    items, stream, clips = data.items, data.streams[slot.stream], []
    assert isinstance(items, VideoItems) and items.crop is not None
    for item in range(slot.first, slot.first + data.batch_size):
        epoch, position = stream.order.at(item)
        sample = int(stream.samples[position])
        rng = random.Random(mix(data.seed, epoch, sample))
        number, row = items.reader.index.locate(sample)
        shard = items.reader.index.shards[number]
        places = [shard.members[ext][row].tolist() for ext in EXTENSIONS if ext in shard.members]
        offset, size = next(place for place in places if place[0] >= 0)
        with open(shard.url, "rb") as file:
            file.seek(offset)
            content = file.read(size)
        video = EncodedVideo(content)
        numbers, _ = choose_frames(video, slot.size[0], items.fps, rng.random(), items.short)
        with av.open(io.BytesIO(content)) as container:
            first = container.streams.video[0]
            fit = items.crop.plan((slot.size[1], slot.size[2]), rng)((first.height, first.width))
        clips.append(Wanted(str(shard.url), offset, size, tuple(video.times[numbers].tolist()), fit))
    return clips


def bare_clip(clip: Wanted) -> Tensor:
    """uint8 [3, T, H, W]."""
    with open(clip.path, "rb") as file:
        file.seek(clip.offset)
        content = file.read(clip.size)
    fit, out = clip.fit, []
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if clip.seconds[0] > 0:
            container.seek(round(clip.seconds[0] / stream.time_base), stream=stream)
        at = 0
        for frame in container.decode(stream):
            while at < len(clip.seconds) and frame.time >= clip.seconds[at] - 1e-6:
                if not at or clip.seconds[at] != clip.seconds[at - 1]:
                    height, width = fit.scaled
                    pixels = frame.reformat(width, height, "rgb24", interpolation=HOW).to_ndarray()
                    pixels = pixels[fit.top : fit.top + fit.size[0], fit.left : fit.left + fit.size[1]]
                    pixels = np.ascontiguousarray(pixels[:, ::-1] if fit.flip else pixels)
                out.append(torch.from_numpy(pixels))
                at += 1
            if at == len(clip.seconds):
                break
    return torch.stack(out).permute(3, 0, 1, 2)


class Bare(Dataset[Tensor]):
    """Batch number -> uint8 [B, 3, T, H, W]."""

    def __init__(self, batches: list[list[Wanted]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Tensor:
        return torch.stack([bare_clip(clip) for clip in self.batches[number]])


def bare(batches: list[list[Wanted]], count: int, workers: int) -> Iterator[Tensor]:
    # More batches than are taken: as with ours, its workers are still busy when the clock stops.
    for number, x in enumerate(DataLoader(Bare(batches), batch_size=None, num_workers=workers)):
        yield to_float(x)
        if number + 1 == count:
            return


def ours(module: VideoData, count: int) -> Iterator[Tensor]:
    loader = module.train_loader(0, 1)
    for number, one in enumerate(loader):
        yield one.x
        if number + 1 == count:
            break
    loader.close()


def rate(batches: Iterator[Tensor]) -> float:
    """Clips per second from the first batch to the last: process start and stop are not the loader's speed."""
    first = next(batches)
    start = end = time.perf_counter()
    count = 0
    for x in batches:
        assert x.shape == first.shape and x.dtype == torch.float32
        count += len(x)
        end = time.perf_counter()
    return count / (end - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--shards", help="folder of video shards; default: samples:video, written anew")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--fps", type=float, default=12.0)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        if args.shards is None:
            make("samples:video", root)
        module = VideoData(
            args.shards or f"{root}/train", frames=args.frames, fps=args.fps, image_size=args.size,
            batch_size=args.batch, num_workers=args.workers, batches_per_epoch=args.batches,
        )  # fmt: skip
        loader = module.train_loader(0, 1)
        slots = loader.plan.slots(0)
        plan = [wanted(loader.dataset, next(slots)) for _ in range(args.batches + 2 * args.workers)]
        same = all(torch.equal(to_float(Bare(plan)[n]), loader.dataset[s].batch().x) for n, s in zip(
            range(2), loader.plan.slots(0), strict=False))  # fmt: skip
        if not same and not usable():
            raise SystemExit("clips: both loops must give the same pixels")
        ways = {
            "ours": lambda: ours(module, args.batches),
            "bare": lambda: bare(plan, args.batches, args.workers),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.rounds):
            turn = list(ways.items())
            for name, way in turn if number % 2 else reversed(turn):
                rates[name].append(rate(way()))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result: dict[str, Any] = {
        "settings": {**{k: v for k, v in vars(args).items() if k not in ("json", "shards")}, "cpus": os.cpu_count()},
        "reader": "torchcodec" if usable() else "PyAV", "same_pixels": same,
        "clips_per_second": {name: round(value, 2) for name, value in medians.items()},
        "rounds": {name: [round(v, 2) for v in values] for name, values in rates.items()},
        "ours_over_bare": round(medians["ours"] / medians["bare"], 3), "bar": 0.9,
    }  # fmt: skip
    write(result, args.json)


if __name__ == "__main__":
    main()
