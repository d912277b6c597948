"""Sample images as data URIs inside a byte budget, and the codec version nearest in bytes to each of ours."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmtok.report.audio_result import Sound
from mmtok.report.result import Picture, Sample

# (share of the samples, WebP quality or None for lossless), tried in order until the page is small enough
LADDER: tuple[tuple[float, int | None], ...] = ((1.0, None), (1.0, 95), (0.5, 95), (0.5, 85), (0.25, 85), (0.0, 85))
STRIP = 4  # frames of a clip that are shown still, side by side


def gallery(samples: list[Sample], budget: int) -> tuple[list[dict[str, Any]], str]:
    """Plain data for the page, and how the pictures were stored.

    budget: bytes for all data URIs together. Fewer samples or lossy storage when they would not fit, and the text
    says so; numbers are never taken from stored pictures.
    """
    for share, quality in LADDER:
        chosen = samples[: math.ceil(len(samples) * share)]
        out = [_sample(sample, quality) for sample in chosen]
        if sum(len(uri) for entry in out for uri in _uris(entry)) <= budget:
            break
    stored = "stored without loss" if quality is None else f"stored as WebP q{quality} to keep this page small"
    fewer = "" if len(chosen) == len(samples) else f"; {len(chosen)} of {len(samples)} samples are shown"
    return out, stored + fewer


def nearest(pictures: Sequence[Picture | Sound], size: float) -> int:
    """Index of the picture or sound whose bytes are nearest to `size`, in ratio."""
    return min(range(len(pictures)), key=lambda i: abs(math.log(pictures[i].values["bytes"] / size)))


def _sample(sample: Sample, quality: int | None) -> dict[str, Any]:
    anchors = []
    for codec, pictures in sample.anchors.items():
        picks = [nearest(pictures, ours.values["bytes"]) for ours in sample.lengths]
        used = sorted(set(picks))
        anchors.append({
            "codec": codec, "pick": [used.index(i) for i in picks],
            "pictures": [_picture(pictures[i], quality, sample.rate) for i in used],
        })
    return {
        "key": sample.key, **_pixels("original", sample.original, quality, sample.rate), "raw": sample.original.numel(),
        "lengths": [_picture(p, quality, sample.rate) for p in sample.lengths], "anchors": anchors,
    }


def _picture(picture: Picture, quality: int | None, rate: float | None) -> dict[str, Any]:
    values = {key: round(value, 5) for key, value in picture.values.items()}
    return {"label": picture.label, **_pixels("src", picture.image, quality, rate), "values": values}


def _pixels(name: str, image: Tensor, quality: int | None, rate: float | None) -> dict[str, str]:
    """A picture, or a clip that moves with a strip of its frames beside it."""
    if image.dim() == 3:
        return {name: data_uri(image, quality)}
    chosen = torch.linspace(0, image.shape[1] - 1, min(STRIP, image.shape[1])).round().long()
    strip = torch.cat([image[:, t] for t in chosen.tolist()], 2)
    return {name: data_uri(image, quality, rate), "strip": data_uri(strip, quality)}


def data_uri(image: Tensor, quality: int | None = None, rate: float | None = None) -> str:
    """A uint8 image [3, H, W], or clip [3, T, H, W] at `rate`, as a WebP data URI, lossless when quality is None."""
    stream = io.BytesIO()
    frames = image[:, None] if image.dim() == 3 else image
    first, *rest = (Image.fromarray(f.permute(1, 2, 0).contiguous().numpy()) for f in frames.unbind(1))
    moving: dict[str, Any] = {}
    if rest:
        moving = {"save_all": True, "append_images": rest, "duration": round(1000 / (rate or 10.0)), "loop": 0}
    first.save(stream, "WEBP", lossless=quality is None, quality=80 if quality is None else quality, method=4, **moving)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def _uris(entry: dict[str, Any]) -> list[str]:
    pictures = entry["lengths"] + [p for anchor in entry["anchors"] for p in anchor["pictures"]]
    strips = [p["strip"] for p in (entry, *pictures) if "strip" in p]
    return [entry["original"], *(p["src"] for p in pictures), *strips]
