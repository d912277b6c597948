"""Large photographs cut into tiles at several scales, so that a small crop never costs a large decode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Tiling:
    """Square tiles of a photograph at its size and at halvings of it, down to a short side between `side` and twice it.

    side    of a tile, pixels
    detail  tiles of any but the coarsest scale are left out below this mean step between diagonal neighbours, in grey
            levels of 0..255 at half the tile's size: out-of-focus parts of a large photograph say nothing new
    """

    side: int
    detail: float = 0.0

    def __post_init__(self) -> None:
        if self.side < 16 or self.detail < 0:
            raise ValueError(f"tile: at least 16 pixels and tile_detail not negative, got {self.side}, {self.detail}")

    def __call__(self, image: Image.Image) -> Iterator[tuple[str, Image.Image]]:
        """("<short side>-<row>-<column>", RGB tile), coarse scales first; a smaller image is one tile, as it is."""
        short = min(image.size)
        factors = [1]
        while short >= 2 * self.side * factors[0]:
            factors.insert(0, 2 * factors[0])
        for factor in factors:
            size = (round(image.width / factor), round(image.height / factor))
            level = image if factor == 1 else image.resize(size, Image.Resampling.LANCZOS)
            for row, top in enumerate(_starts(level.height, self.side)):
                for column, left in enumerate(_starts(level.width, self.side)):
                    box = (left, top, min(left + self.side, level.width), min(top + self.side, level.height))
                    tile = level.crop(box)
                    if factor == factors[0] or _detail(tile) >= self.detail:
                        yield f"{min(size)}-{row}-{column}", tile


def _starts(length: int, side: int) -> list[int]:
    """Offsets of the fewest tiles that leave out at most a third of a tile, evenly spread from end to end."""
    count = max(1, -(-(length - side // 3) // side))
    return [round(index * (length - side) / (count - 1)) for index in range(count)] if count > 1 else [0]


def _detail(tile: Image.Image) -> float:
    half = (max(2, tile.width // 2), max(2, tile.height // 2))
    grey = np.asarray(tile.convert("L").resize(half, Image.Resampling.BOX), np.float32)
    return float(np.abs(grey[1:, 1:] - grey[:-1, :-1]).mean())
