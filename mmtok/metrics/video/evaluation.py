"""Evaluation of a video tokenizer in one pass for all lengths: frames, flicker, bits, codebook usage, video codecs.

The flow is that of images (`mmtok.metrics.evaluation`); every frame counts as an image, a file holds one clip.

Legend: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from mmtok.metrics.base import KeyCount
from mmtok.metrics.evaluation import Evaluation, Plan
from mmtok.metrics.pixels import to_uint8
from mmtok.metrics.suite import Panel
from mmtok.metrics.video import anchors as codecs
from mmtok.metrics.video.rate import ClipSizes, FlickerPSNR, VideoRate
from mmtok.report.result import Picture, Sample
from mmtok.report.video_result import VideoResult
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch

NAMES = ("psnr", "ssim", "lpips_alex", "lpips_vgg", "fd_vgg16")


class VideoEvaluation(Evaluation):
    """Feeds on this process's batches of clips; `finish` gives the result over all processes, on every one of them.

    tokenizer  a video tokenizer, on `device`
    size       (T, H, W) of all clips
    plan       as of images; metrics of `NAMES` are taken a frame, codecs are "x264", "x265", "svtav1"
    """

    def __init__(
        self, tokenizer: Tokenizer, size: tuple[int, int, int], plan: Plan, device: torch.device | str = "cpu",
        weights: str | Path | None = None,
    ) -> None:
        wrong = [name for name in plan.metrics if name not in NAMES]
        if wrong:
            raise ValueError(f"metrics: of video expected some of {', '.join(NAMES)}, got {', '.join(wrong)}")
        self.codecs = codecs.settings(plan.codecs) if plan.codecs else []
        frames = Plan(plan.lengths, plan.metrics, (), plan.samples, plan.rounding)
        super().__init__(tokenizer, size, frames, device, weights)
        for candidate in self.candidates:
            candidate.rate = VideoRate()
            _with_flicker(candidate.panel)
        self.anchors = [(s, _with_flicker(self.suite.panel(False)), ClipSizes()) for s in self.codecs]  # type: ignore[misc]
        self.rates: list[float] = []

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Measures a batch: one encoding, one decoding per length."""
        batch = batch.to(self.device)
        if tuple(batch.x.shape[2:]) != self.size or batch.rate is None:
            raise ValueError(f"evaluate: a clip is {list(batch.x.shape[2:])}, expected {list(self.size)} with a rate")
        real = to_uint8(batch.x, self.plan.rounding)
        self.keys.update(batch.keys)
        for clip, key in zip(real, batch.keys, strict=True):
            self.suite.see_real(clip.transpose(0, 1), tuple(f"{key} {t}" for t in range(clip.shape[1])))
        full = self.tokenizer.encode(batch)
        seen = []
        for candidate in self.candidates:
            tokens = self._tokens(full, batch, candidate.length)
            decoded = self.tokenizer.decode(tokens)
            if not bool(torch.isfinite(decoded).all()):
                raise ValueError(f"evaluate: the model decodes {self._label(candidate.length)} to NaN or infinity")
            fake = to_uint8(decoded, self.plan.rounding)
            rows = [_scores(candidate.panel, a, b) for a, b in zip(real, fake, strict=True)]
            scores = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
            scores = {"bytes": candidate.rate.update(tokens).double(), **scores}
            candidate.usage.update(tokens)
            seen.append((fake.cpu(), scores))
        for setting, panel, size in self.anchors:
            for clip, rate in zip(real, batch.rate.tolist(), strict=True):
                back, count = codecs.through(clip, rate, setting)  # type: ignore[arg-type]
                _scores(panel, clip, back)
                size.count_clip(count, clip, rate)  # type: ignore[attr-defined]
        self.rates = batch.rate.tolist()
        self._show(batch.keys, real.cpu(), seen)

    def finish(self, expected: KeyCount | None = None) -> VideoResult:
        """As of images."""
        found = super().finish(expected)
        values = {field.name: getattr(found, field.name) for field in fields(found)}
        seconds = float(self.candidates[0].rate.states["seconds"])
        return VideoResult(**values, video_seconds=seconds)

    def _sample(self, index: int, key: str, real: Tensor, pictures: tuple[Picture, ...]) -> Sample:
        return Sample(key, real, pictures, rate=self.rates[index])

    def _versions_of(self, sample: Sample) -> dict[str, tuple[Picture, ...]]:
        """One clip through every codec setting, by codec title."""
        out: dict[str, tuple[Picture, ...]] = {}
        for setting in self.codecs:
            real = sample.original.to(self.device)
            back, size = codecs.through(real, sample.rate or 1.0, setting)
            scores = _scores(_with_flicker(self.suite.panel(False)), real, back)
            picture = Picture(setting.label, back.cpu(), {"bytes": float(size), **scores})
            out[setting.series] = (*out.get(setting.series, ()), picture)
        return out

    def _protocol(self) -> dict[str, str]:
        out = super()._protocol()
        out = {name: text.replace("over images", "over frames") for name, text in out.items()}
        out["flicker_psnr"] = "PSNR of differences of neighbouring frames, mean over pairs"
        out["rate"] = "bpp: bits of a file over the pixels of all its frames; kbps over all seconds"
        if self.codecs:
            import av

            versions = av.library_versions["libavcodec"]
            out["codecs"] = (
                f"PyAV {av.__version__} (libavcodec {'.'.join(map(str, versions))}): elementary streams, one key frame,"
                " 4:2:0, x264 and x265 medium, SVT-AV1 preset 8; 1/2: coded reduced, enlarged by bicubic"
            )
        return out


def _with_flicker(panel: Panel) -> Panel:
    panel.means.append(FlickerPSNR())
    return panel


def _scores(panel: Panel, real: Tensor, fake: Tensor) -> dict[str, float]:
    """Counts one clip uint8 [3, T, H, W]; means over its frames by key."""
    rows = panel.update(real.transpose(0, 1).contiguous(), fake.transpose(0, 1).contiguous())
    return {key: float(values.mean()) if values.numel() else 100.0 for key, values in rows.items()}
