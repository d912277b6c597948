"""Image codecs to measure beside: JPEG, WebP and AVIF by Pillow, at their own whole file sizes.

Legend: B batch, H, W pixels.

The lowest quality of a codec still spends hundreds of bytes on a small image. To reach the rates of tokenizers it
may also code a reduced image that the receiver enlarges again: `scale` 2 and 4, Lanczos both ways.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor


@dataclass(frozen=True)
class AnchorSetting:
    """One way to write an image: a Pillow format at a quality, after reduction by `scale`."""

    codec: str
    quality: int
    scale: int = 1

    @property
    def series(self) -> str:
        return CODECS[self.codec].title

    @property
    def label(self) -> str:
        """For people: "WebP q10", "JPEG q5 at 1/2"."""
        return f"{CODECS[self.codec].title} q{self.quality}" + (f" at 1/{self.scale}" if self.scale > 1 else "")


@dataclass(frozen=True)
class Codec:
    """A codec's Pillow format, options that are always set, and the sweep of (scale, quality)."""

    title: str
    format: str
    mime: str
    options: dict[str, object] = field(default_factory=dict)
    sweep: tuple[tuple[int, int], ...] = ()


CODECS = {
    "jpeg": Codec("JPEG", "JPEG", "image/jpeg", {"optimize": True},
                  ((4, 10), (4, 40), (2, 5), (2, 20), (1, 5), (1, 10), (1, 20), (1, 40), (1, 70))),
    "webp": Codec("WebP", "WEBP", "image/webp", {"method": 6},
                  ((4, 0), (4, 30), (2, 0), (2, 30), (1, 0), (1, 10), (1, 30), (1, 60), (1, 85))),
    "avif": Codec("AVIF", "AVIF", "image/avif", {"speed": 6, "max_threads": 1},
                  ((4, 10), (4, 40), (2, 10), (2, 40), (1, 0), (1, 20), (1, 40), (1, 60), (1, 80))),
}


def settings(codecs: tuple[str, ...] = ("jpeg", "webp", "avif")) -> list[AnchorSetting]:
    """The default sweep of these codecs; ValueError for an unknown one or one this Pillow cannot write."""
    out = []
    for name in codecs:
        if name not in CODECS:
            raise ValueError(f'anchors: expected some of {", ".join(CODECS)}, got "{name}"')
        if name != "jpeg" and not features.check(name):
            raise ValueError(f'anchors: this Pillow has no {name}: pip install -U pillow, or leave "{name}" out')
        out += [AnchorSetting(name, quality, scale) for scale, quality in CODECS[name].sweep]
    return out


def encode_image(image: Tensor, setting: AnchorSetting) -> bytes:
    """The file of a uint8 image [3, H, W]."""
    codec = CODECS[setting.codec]
    picture = Image.fromarray(image.cpu().permute(1, 2, 0).contiguous().numpy())
    if setting.scale > 1:
        width, height = (max(1, round(n / setting.scale)) for n in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, codec.format, quality=setting.quality, **codec.options)
    return stream.getvalue()


def decode_image(data: bytes, height: int, width: int) -> Tensor:
    """uint8 [3, height, width] of a file, enlarged when it holds a reduced image."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def through(images: Tensor, setting: AnchorSetting) -> tuple[Tensor, Tensor]:
    """What comes back of uint8 images [B, 3, H, W], and the bytes of every file, int64 [B]."""
    files = [encode_image(image, setting) for image in images]
    back = torch.stack([decode_image(data, *images.shape[2:]) for data in files])
    return back.to(images.device), torch.tensor([len(data) for data in files], dtype=torch.int64)
