"""What an evaluation of a codec found: the numbers of `EvaluationResult`, and sounds to play.

Legend: T samples, mono, float32 in [-1, 1].
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from mmtok.metrics.audio.base import Failure
from mmtok.report.result import EvaluationResult, Row


@dataclass(frozen=True)
class Sound:
    """One version of an utterance, [T], with its own numbers (`bytes`, `kbps` and the metrics it has a value of)."""

    label: str
    wave: Tensor
    values: dict[str, float]


@dataclass(frozen=True)
class Clip:
    """A held-out utterance at `rate` Hz, its reconstruction at every rate of the model, and codec versions by codec."""

    key: str
    rate: int
    original: Sound
    lengths: tuple[Sound, ...]
    anchors: dict[str, tuple[Sound, ...]] = field(default_factory=dict)


@dataclass
class AudioResult(EvaluationResult):
    """`images` counts utterances, `size` is (0, 0).

    original       the ground-truth row: what the metrics give the originals themselves
    rate           Hz of the codec
    audio_seconds  of all utterances
    failures       every utterance that could not be read or that a metric has no value for
    """

    rate: int = 0
    audio_seconds: float = 0.0
    original: Row = field(default_factory=lambda: Row("original", "original", {}))
    clips: list[Clip] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    noun: ClassVar[str] = "utterances"
    rate_key: ClassVar[str] = "kbps_file"
    rate_axis: ClassVar[str] = "kbps, whole files"

    @property
    def subject(self) -> str:
        return f"{self.images:,} {self.noun}, {self.audio_seconds:,.0f} s at {self.rate / 1000:g} kHz"

    def to_json(self) -> dict[str, Any]:
        out = super().to_json()
        del out["size"]
        out["utterances"] = out.pop("images")
        return {
            **out, "rate": self.rate, "audio_seconds": self.audio_seconds, "original": asdict(self.original),
            "failures": [asdict(failure) for failure in self.failures],
        }
