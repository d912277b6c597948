"""What an evaluation found: numbers by length, codec anchors, codebooks, and a few pictures to look at."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from mmtok.metrics.usage import CodebookUsage

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Row:
    """Means over the evaluated set for one candidate.

    label   for people: "32 tokens", "WebP q10"
    series  the curve it belongs to: the model's name, or a codec
    length  tokens (or residual depth) that were asked for; None for anchors and fixed-length models
    scale   a codec's reduction of the image before coding; 1 otherwise
    values  by metric key; `bytes_file` is in all of them
    """

    label: str
    series: str
    values: dict[str, float]
    length: int | None = None
    scale: int = 1


@dataclass(frozen=True)
class Picture:
    """One version of a sample image, uint8 [3, H, W], or clip, [3, T, H, W], and its numbers: `bytes` and metrics."""

    label: str
    image: Tensor
    values: dict[str, float]


@dataclass(frozen=True)
class Sample:
    """A held-out image or clip, its reconstruction at every length, and codec versions by codec.

    rate  frames per second of a clip
    """

    key: str
    original: Tensor
    lengths: tuple[Picture, ...]
    anchors: dict[str, tuple[Picture, ...]] = field(default_factory=dict)
    rate: float | None = None


@dataclass
class EvaluationResult:
    """Everything `write_report` shows. `to_json` holds all numbers and no pictures.

    protocol  what a reader must know to compare: preset of resize and crop, rounding, networks, counting rules
    floors    split-half Frechet distances of the real images
    notes     what was left out and why
    """

    size: tuple[int, ...]
    images: int
    skipped: int
    lengths: list[Row]
    anchors: list[Row]
    usage: list[CodebookUsage]
    samples: list[Sample]
    protocol: dict[str, str]
    floors: dict[str, float]
    notes: list[str]
    seconds: float
    model: str = ""
    data: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    noun: ClassVar[str] = "images"
    rate_key: ClassVar[str] = "bytes_file"  # the horizontal axis of rate-distortion curves, in every row
    rate_axis: ClassVar[str] = "bytes per image, whole file"

    @property
    def subject(self) -> str:
        """What was measured: "24 images at 256 x 256"."""
        return f"{self.images:,} {self.noun} at {self.size[0]} x {self.size[1]}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for metrics.json."""
        names = ("model", "data", "command", "images", "skipped", "seconds", "protocol", "floors", "versions", "notes")
        return {
            "format_version": FORMAT_VERSION, **{name: getattr(self, name) for name in names},
            "size": list(self.size), "lengths": [asdict(row) for row in self.lengths],
            "anchors": [asdict(row) for row in self.anchors], "usage": [asdict(book) for book in self.usage],
        }

    def write_json(self, path: Path) -> Path:
        """Writes metrics.json (whole or not at all); NaN and infinity are refused."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        part = path.with_suffix(".part")
        part.write_text(text + "\n")
        part.replace(path)
        return path
