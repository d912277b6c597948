"""What an evaluation of a video tokenizer found: the numbers of `EvaluationResult`, and clips to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mmtok.report.result import EvaluationResult


@dataclass
class VideoResult(EvaluationResult):
    """`images` counts clips, `size` is (T, H, W), pictures are uint8 [3, T, H, W].

    video_seconds  of all clips
    """

    video_seconds: float = 0.0

    noun: ClassVar[str] = "clips"
    rate_axis: ClassVar[str] = "bytes per clip, whole file"

    @property
    def subject(self) -> str:
        frames, height, width = self.size  # type: ignore[misc]
        return f"{self.images:,} {self.noun} of {frames} frames at {height} x {width}, {self.video_seconds:,.1f} s"

    def to_json(self) -> dict[str, Any]:
        out = super().to_json()
        out["clips"] = out.pop("images")
        return {**out, "video_seconds": self.video_seconds}
