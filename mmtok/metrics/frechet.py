"""Frechet distance between two sets of image features, from float64 moments (Heusel et al., arXiv 1706.08500).

Legend: B batch, D features, n images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmtok.metrics.base import Metric, key_hash


class Moments(Metric):
    """Count, sum and sum of outer products of features [B, D]: all that a Gaussian fit needs.

    biased  the covariance divides by n, as some protocols of video do, instead of n - 1
    """

    def __init__(self, dim: int, biased: bool = False) -> None:
        self.biased = biased
        super().__init__(
            count=torch.zeros(1, dtype=torch.int64), total=torch.zeros(dim, dtype=torch.float64),
            outer=torch.zeros(dim, dim, dtype=torch.float64),
        )

    def update(self, features: Tensor) -> None:
        """Counts float [B, D]; ValueError when a feature is not finite."""
        x = features.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(x).all()):
            raise ValueError("frechet: features hold NaN or infinity")
        self.add("count", torch.tensor([x.shape[0]]))
        self.add("total", x.sum(0))
        self.add("outer", x.T @ x)

    @property
    def count(self) -> int:
        return int(self.states["count"])

    def gaussian(self) -> Gaussian:
        """Mean and covariance; ValueError below two items."""
        if self.count < 2:
            raise ValueError(f"frechet: needs at least 2 items, got {self.count}")
        mean = self.states["total"] / self.count
        cov = (self.states["outer"] - self.count * torch.outer(mean, mean)) / (self.count - (not self.biased))
        return Gaussian(mean, (cov + cov.T) / 2)

    def compute(self) -> dict[str, float]:
        return {"count": float(self.count)}


@dataclass(frozen=True)
class Gaussian:
    """mean float64 [D], cov float64 [D, D], symmetric."""

    mean: Tensor
    cov: Tensor

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of `cov`; kept, because one reference meets many candidates."""
        values, vectors = torch.linalg.eigh(self.cov)
        return (vectors * _above_noise(values).sqrt()) @ vectors.T


class ReferenceMoments:
    """Moments of the real items in two halves, split by name so that every process agrees.

    The distance between the halves is the floor below which a value on this many items says little.
    biased  see `Moments`
    """

    def __init__(self, dim: int, biased: bool = False) -> None:
        self.halves = (Moments(dim, biased), Moments(dim, biased))

    def update(self, features: Tensor, keys: tuple[str, ...]) -> None:
        odd = torch.tensor([key_hash(key) % 2 == 1 for key in keys], device=features.device)
        self.halves[0].update(features[~odd])
        self.halves[1].update(features[odd])

    def whole(self) -> Moments:
        """Both halves together."""
        first, second = self.halves
        out = Moments(first.states["total"].numel(), first.biased)
        for half in (first, second):
            out.merge(half)
        return out

    def floor(self) -> float | None:
        """Distance between the halves; None when one of them has fewer than two items."""
        if min(half.count for half in self.halves) < 2:
            return None
        return frechet_distance(*(half.gaussian() for half in self.halves))


def frechet_distance(real: Gaussian, fake: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The root's trace is the sum of roots of the eigenvalues of C1^(1/2) C2 C1^(1/2): symmetric, so it stays real and
    stable when there are fewer images than features.
    """
    cross = _above_noise(torch.linalg.eigvalsh(real.root @ fake.cov @ real.root)).sqrt().sum()
    distance = (real.mean - fake.mean).square().sum() + real.cov.trace() + fake.cov.trace() - 2 * cross
    return max(float(distance), 0.0)


def _above_noise(values: Tensor) -> Tensor:
    """Eigenvalues [D] of a positive semidefinite matrix with those below float64's resolution set to zero: the root
    would raise their noise of 1e-16 to 1e-8, D times over."""
    return values.where(values > values.numel() * torch.finfo(values.dtype).eps * values.max(), 0.0)


def count_name(count: int) -> str:
    """50000 -> "50k", 76 -> "76": how the number of images appears in a key."""
    return f"{count // 1000}k" if count and count % 1000 == 0 else str(count)
