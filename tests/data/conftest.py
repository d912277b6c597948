"""Small photographs as a folder, and the same as four shards; makes `video_files` importable."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mmtok.data.write import make_shards

sys.path.insert(0, str(Path(__file__).parent))
COUNT = 22


def photo(height: int, width: int, seed: int) -> Image.Image:
    """Smooth colour noise: compresses like a photograph and differs everywhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 JPEGs of two shapes, named i00.jpg ..."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        height, width = (96, 64) if number % 3 else (48, 100)
        (root / f"i{number:02d}.jpg").write_bytes(encoded(photo(height, width, number), quality=90))
    return root


@pytest.fixture(scope="session")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 22 in four shards of 6, 6, 6, 4."""
    root = tmp_path_factory.mktemp("shards") / "set"
    make_shards(str(folder), root, samples_per_shard=6)
    return root
