"""Feature matching between a discriminator's maps of real and decoded media.

Legend: K sub-discriminators, L maps of one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["sum", "per_discriminator", "mean", "relative"]


class FeatureMatching:
    """d = mean |fake - real| of every map, reduced as the paper whose weight is used did.

    sum                sum of d over all maps: HiFi-GAN (and twice that: SpeechTokenizer), DAC, BigCodec
    per_discriminator  the same divided by K: Vocos, WavTokenizer
    mean               mean over the maps of a sub-discriminator, then over these: audiocraft, X-Codec
    relative           mean over all maps of d / mean |real|: EnCodec's paper (arXiv 2210.13438, eq. 2)
    """

    def __init__(self, reduction: Reduction = "sum") -> None:
        self.reduction = reduction

    def __call__(self, real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
        """float32 scalar; no gradient reaches `real`."""
        if not real or not real[0]:
            raise ValueError("Adversarial.features: this discriminator gives no feature maps")
        found = [
            torch.stack([self._distance(r.detach().float(), f.float()) for r, f in zip(rs, fs, strict=True)])
            for rs, fs in zip(real, fake, strict=True)
        ]
        if self.reduction == "mean":
            return torch.stack([d.mean() for d in found]).mean()
        if self.reduction == "relative":
            return torch.cat(found).mean()
        total = torch.cat(found).sum()
        return total / len(found) if self.reduction == "per_discriminator" else total

    def _distance(self, real: Tensor, fake: Tensor) -> Tensor:
        distance = (fake - real).abs().mean()
        return distance / real.abs().mean().clamp(min=1e-12) if self.reduction == "relative" else distance
