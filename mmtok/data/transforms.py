"""From an encoded image to exactly H x W pixels: training crops and evaluation presets.

Every resize uses an antialiasing filter (Pillow's, whose support grows with the scale). All randomness comes
from the generator handed in. A training crop is chosen on the header's size and cut by the resize itself, so
a large JPEG is decoded no larger than needed (see decode.DRAFT_MARGIN); presets for evaluation always decode
in full, because their pixels are compared with other people's.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod

from PIL import Image

from mmtok.data.decode import DRAFT_MARGIN, EncodedImage

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the upright image


class Transform(ABC):
    """An encoded image and a target (H, W) -> RGB image of exactly that size."""

    @abstractmethod
    def __call__(self, image: EncodedImage, size: tuple[int, int], rng: random.Random) -> Image.Image:
        """Raises BadSample when the pixels cannot be decoded."""


class RandomResizedCrop(Transform):
    """A crop of random area and shape, resized: scale is its share of the image's area, ratio its W:H
    relative to the target's. Bicubic by default."""

    def __init__(
        self, scale: tuple[float, float] = (0.2, 1.0), ratio: tuple[float, float] = (0.75, 4 / 3),
        flip: float = 0.5, filter: str = "bicubic",
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"transform.scale: needs 0 < low <= high <= 1, got {scale}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"transform.ratio: needs 0 < low <= high, got {ratio}")
        self.scale, self.ratio, self.flip, self.filter = tuple(scale), tuple(ratio), flip, _filter(filter)

    def __call__(self, image: EncodedImage, size: tuple[int, int], rng: random.Random) -> Image.Image:
        height, width = image.size
        target = size[1] / size[0]
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            shape = target * math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            crop_h, crop_w = math.sqrt(area / shape), math.sqrt(area * shape)
            if crop_h <= height and crop_w <= width:
                left, top = rng.uniform(0, width - crop_w), rng.uniform(0, height - crop_h)
                box = (left, top, left + crop_w, top + crop_h)
                break
        else:
            box = _cover(image.size, size, 0.5, 0.5)
        return _cut(image, box, size, self.filter, rng.random() < self.flip)


class ResizeRandomCrop(Transform):
    """The largest window of the target's shape, shrunk by 1/zoom and placed at random: "resize the short side
    to zoom * size, then random crop", with zoom drawn from a range (VQGAN and MaskGIT: 1; ADM: 1 to 1.25)."""

    def __init__(self, zoom: tuple[float, float] = (1.0, 1.0), flip: float = 0.5, filter: str = "bicubic") -> None:
        if not 1 <= zoom[0] <= zoom[1]:
            raise ValueError(f"transform.zoom: needs 1 <= low <= high, got {zoom}")
        self.zoom, self.flip, self.filter = tuple(zoom), flip, _filter(filter)

    def __call__(self, image: EncodedImage, size: tuple[int, int], rng: random.Random) -> Image.Image:
        zoom = rng.uniform(*self.zoom)
        box = _cover(image.size, size, rng.random(), rng.random(), zoom)
        return _cut(image, box, size, self.filter, rng.random() < self.flip)


class CenterCrop(Transform):
    """`resize_center`: short side to the target (PIL filter, antialiased, sides rounded down as torchvision
    does), then the central H x W. The usual protocol of tokenizer papers; no randomness."""

    def __init__(self, filter: str = "bicubic") -> None:
        self.name, self.filter = f"resize_center_{filter}", _filter(filter)

    def __call__(self, image: EncodedImage, size: tuple[int, int], rng: random.Random) -> Image.Image:
        pixels, (height, width) = image.pixels(), image.size
        if height * size[1] <= width * size[0]:  # rows decide
            resized = pixels.resize((max(size[1], int(width * size[0] / height)), size[0]), self.filter)
        else:
            resized = pixels.resize((size[1], max(size[0], int(height * size[1] / width))), self.filter)
        left, top = round((resized.width - size[1]) / 2.0), round((resized.height - size[0]) / 2.0)
        return resized.crop((left, top, left + size[1], top + size[0]))


class AdmCenterCrop(Transform):
    """`adm_center`: halve by box averaging while the short side is at least twice the target, bicubic to the
    target, central square (ADM and DiT evaluation). Square targets only."""

    name = "adm_center"

    def __call__(self, image: EncodedImage, size: tuple[int, int], rng: random.Random) -> Image.Image:
        if size[0] != size[1]:
            raise ValueError(f"data.eval_transform: AdmCenterCrop makes squares, not {size[0]}x{size[1]}")
        pixels, side = image.pixels(), size[0]
        while min(pixels.size) >= 2 * side:
            pixels = pixels.resize((pixels.width // 2, pixels.height // 2), Image.Resampling.BOX)
        scale = side / min(pixels.size)
        pixels = pixels.resize((round(pixels.width * scale), round(pixels.height * scale)), Image.Resampling.BICUBIC)
        left, top = (pixels.width - side) // 2, (pixels.height - side) // 2
        return pixels.crop((left, top, left + side, top + side))


def bucket_sizes(side: int, aspects: list[float], multiple: int) -> list[tuple[int, int]]:
    """(H, W) per aspect W:H, with an area near side * side and both sides multiples of `multiple`."""
    sizes = []
    for aspect in aspects:
        if not 0.1 <= aspect <= 10:
            raise ValueError(f"data.aspects: an aspect is W:H between 0.1 and 10, got {aspect}")
        height, width = side / math.sqrt(aspect), side * math.sqrt(aspect)
        sizes.append(tuple(max(multiple, round(v / multiple) * multiple) for v in (height, width)))
    if len(set(sizes)) != len(sizes):
        raise ValueError(f"data.aspects: {aspects} fall on the same size {sizes} at {side} px and multiple {multiple}")
    return sizes  # type: ignore[return-value]


def _filter(name: str) -> Image.Resampling:
    filters = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
               "bilinear": Image.Resampling.BILINEAR, "box": Image.Resampling.BOX}
    if name not in filters:
        raise ValueError(f"transform.filter: one of {', '.join(filters)}, got {name!r}")
    return filters[name]


def _cover(size: tuple[int, int], target: tuple[int, int], y: float, x: float, zoom: float = 1.0) -> Box:
    """The largest box of the target's shape, divided by zoom, at the relative place (y, x) in [0, 1]."""
    height, width = size
    scale = min(height / target[0], width / target[1]) / zoom
    crop_h, crop_w = target[0] * scale, target[1] * scale
    left, top = x * (width - crop_w), y * (height - crop_h)
    return left, top, left + crop_w, top + crop_h


def _cut(
    image: EncodedImage, box: Box, size: tuple[int, int], filter: Image.Resampling, flip: bool
) -> Image.Image:
    height, width = image.size
    scale = min((box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0])
    pixels = image.pixels(scale / DRAFT_MARGIN)
    sx, sy = pixels.width / width, pixels.height / height
    # min: rounding must not put the box an ulp outside the image
    scaled = (
        max(0.0, box[0] * sx), max(0.0, box[1] * sy),
        min(float(pixels.width), box[2] * sx), min(float(pixels.height), box[3] * sy),
    )
    cut = pixels.resize((size[1], size[0]), filter, box=scaled)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut
