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
from mmtok.metrics.video.fvd import NETWORKS, ClipDistance
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
    plan       as of images; metrics of `NAMES` are taken a frame (psnr always), those of `fvd.NETWORKS` a clip; codecs
               are "x264", "x265", "svtav1"
    fps        frames per second that all clips were sampled at, None: those of each file
    """

    def __init__(
        self, tokenizer: Tokenizer, size: tuple[int, int, int], plan: Plan, device: torch.device | str = "cpu",
        weights: str | Path | None = None, fps: float | None = None,
    ) -> None:
        known = (*NAMES, *NETWORKS)
        wrong = [name for name in plan.metrics if name not in known]
        if wrong:
            raise ValueError(f"metrics: of video expected some of {', '.join(known)}, got {', '.join(wrong)}")
        self.codecs = codecs.settings(plan.codecs) if plan.codecs else []
        names = tuple(name for name in plan.metrics if name in NAMES) or ("psnr",)
        frames = Plan(plan.lengths, names, (), plan.samples, plan.rounding)
        super().__init__(tokenizer, size, frames, device, weights)
        networks = [NETWORKS[name] for name in dict.fromkeys(plan.metrics) if name in NETWORKS]
        self.clips = [ClipDistance(load(weights, device), size, fps) for load in networks]
        self.suite.reference |= {clips.name: clips.reference for clips in self.clips}
        for candidate in self.candidates:
            candidate.rate = VideoRate()
            self._for_clips(candidate.panel)
        panels = [self._for_clips(self.suite.panel(False), plan.frechet_of_codecs) for _ in self.codecs]
        self.anchors = [(s, panel, ClipSizes()) for s, panel in zip(self.codecs, panels, strict=True)]  # type: ignore[misc]
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
        for clips in self.clips:
            clips.reference.update(clips.features(real), batch.keys)
        full = self.tokenizer.encode(batch)
        seen = []
        for candidate in self.candidates:
            tokens = self._tokens(full, batch, candidate.length)
            decoded = self.tokenizer.decode(tokens)
            if not bool(torch.isfinite(decoded).all()):
                raise ValueError(f"evaluate: the model decodes {self._label(candidate.length)} to NaN or infinity")
            fake = to_uint8(decoded, self.plan.rounding)
            rows = [_scores(candidate.panel, a, b) for a, b in zip(real, fake, strict=True)]
            self._see_clips(candidate.panel, fake)
            scores = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
            scores = {"bytes": candidate.rate.update(tokens).double(), **scores}
            candidate.usage.update(tokens)
            seen.append((fake.cpu(), scores))
        for setting, panel, size in self.anchors:
            for clip, rate in zip(real, batch.rate.tolist(), strict=True):
                back, count = codecs.through(clip, rate, setting)  # type: ignore[arg-type]
                _scores(panel, clip, back)
                self._see_clips(panel, back[None])
                size.count_clip(count, clip, rate)  # type: ignore[attr-defined]
        self.rates = batch.rate.tolist()
        self._show(batch.keys, real.cpu(), seen)

    def finish(self, expected: KeyCount | None = None) -> VideoResult:
        """As of images."""
        found = super().finish(expected)
        values = {field.name: getattr(found, field.name) for field in fields(found)}
        seconds = float(self.candidates[0].rate.states["seconds"])
        return VideoResult(**values, video_seconds=seconds)

    def _for_clips(self, panel: Panel, distances: bool = True) -> Panel:
        panel.means.append(FlickerPSNR())
        panel.moments |= {clips.name: clips.moments() for clips in self.clips if distances}
        return panel

    def _see_clips(self, panel: Panel, fake: Tensor) -> None:
        """Counts decoded clips uint8 [B, 3, T, H, W] for the distances that the panel has."""
        for clips in self.clips:
            if clips.name in panel.moments:
                panel.moments[clips.name].update(clips.features(fake))

    def _sample(self, index: int, key: str, real: Tensor, pictures: tuple[Picture, ...]) -> Sample:
        return Sample(key, real, pictures, rate=self.rates[index])

    def _versions_of(self, sample: Sample) -> dict[str, tuple[Picture, ...]]:
        """One clip through every codec setting, by codec title."""
        out: dict[str, tuple[Picture, ...]] = {}
        for setting in self.codecs:
            real = sample.original.to(self.device)
            back, size = codecs.through(real, sample.rate or 1.0, setting)
            scores = _scores(self._for_clips(self.suite.panel(False), False), real, back)
            picture = Picture(setting.label, back.cpu(), {"bytes": float(size), **scores})
            out[setting.series] = (*out.get(setting.series, ()), picture)
        return out

    def _protocol(self) -> dict[str, str]:
        out = super()._protocol()
        out = {name: text.replace("over images", "over frames") for name, text in out.items()}
        out["flicker_psnr"] = "PSNR of differences of neighbouring frames, mean over pairs"
        for clips in self.clips:
            out[clips.name] = f"{clips.features.about}; whole frames to 224 x 224, bilinear; against the same clips"
        out["rate"] = "bpp: bits of a file over the pixels of all its frames; kbps over all seconds"
        if self.codecs:
            import av

            versions = av.library_versions["libavcodec"]
            out["codecs"] = (
                f"PyAV {av.__version__} (libavcodec {'.'.join(map(str, versions))}): elementary streams, one key frame,"
                " 4:2:0, x264 and x265 medium, SVT-AV1 preset 8; 1/2: coded reduced, enlarged by bicubic"
            )
        return out


def _scores(panel: Panel, real: Tensor, fake: Tensor) -> dict[str, float]:
    """Counts one clip uint8 [3, T, H, W]; means over its frames by key."""
    rows = panel.update(real.transpose(0, 1).contiguous(), fake.transpose(0, 1).contiguous())
    return {key: float(values.mean()) if values.numel() else 100.0 for key, values in rows.items()}
