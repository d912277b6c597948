"""How logits of a discriminator become losses.

Legend: logits have any shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class GANLoss:
    """How logits become losses: float32 scalars."""

    def generator(self, fake: Tensor) -> Tensor:
        raise NotImplementedError

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        raise NotImplementedError


class Hinge(GANLoss):
    """Hinge loss (arXiv 1705.02894).

    halves   what the sum of the discriminator's two halves is divided by: 2 for images, 1 as audio codecs publish it
    bounded  the generator minimises mean(max(0, 1 - D)) (Vocos, EnCodec's paper) instead of -mean(D)
    """

    def __init__(self, halves: float = 2.0, bounded: bool = False) -> None:
        self.halves, self.bounded = halves, bounded

    def generator(self, fake: Tensor) -> Tensor:
        return F.relu(1 - fake).mean() if self.bounded else -fake.mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / self.halves


class LeastSquares(GANLoss):
    """Least squares (arXiv 1611.04076): real towards 1, fake towards 0; the two halves are added."""

    def generator(self, fake: Tensor) -> Tensor:
        return (1 - fake).square().mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return (1 - real).square().mean() + fake.square().mean()


class NonSaturating(GANLoss):
    """Binary cross-entropy; the generator maximises log D(fake) (arXiv 1406.2661)."""

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


class NoisyNonSaturating(NonSaturating):
    """Cross-entropy whose discriminator learns noisy labels: 1 - noise |N|, at least `real`, and noise |N|, at most
    `fake`, N normal, drawn anew for every logit (LARP, arXiv 2410.21264)."""

    def __init__(self, noise: float = 0.15, real: float = 0.7, fake: float = 0.3) -> None:
        self.noise, self.real, self.fake = noise, real, fake

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        high = (1 - self.noise * torch.randn_like(real).abs()).clamp(min=self.real)
        low = (self.noise * torch.randn_like(fake).abs()).clamp(max=self.fake)
        return (F.softplus(real) - high * real).mean() / 2 + (F.softplus(fake) - low * fake).mean() / 2


class Vanilla(NonSaturating):
    """Cross-entropy for the discriminator, -mean logit for the generator: VQGAN's "vanilla"."""

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()


class HingeNonSaturating(Hinge):
    """Hinge loss for the discriminator, cross-entropy for the generator (MAGVIT-v2's trainers: Open-MAGVIT2, IBQ)."""

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()
