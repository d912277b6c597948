"""Distances between samples: mean over every element (padding of shorter items left out), float32.

Legend: B batch, C channels, *S media axes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.losses.base import Term, reconstruction_of
from mmtok.types import Batch, Reconstruction


class L1(Term):
    """mean |x - y| of float [B, C, *S] in [-1, 1]."""

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        return _mean(_difference(recon, batch, "L1").abs(), batch)


class L2(Term):
    """mean (x - y)^2 of float [B, C, *S] in [-1, 1]."""

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        return _mean(_difference(recon, batch, "L2").square(), batch)


class LogCosh(Term):
    """mean log cosh(sharpness (x - y)) / sharpness: quadratic near zero, |x - y| far from it."""

    def __init__(self, sharpness: float = 1.0) -> None:
        super().__init__()
        if sharpness <= 0:
            raise ValueError(f"LogCosh.sharpness must be positive, got {sharpness}")
        self.sharpness = sharpness

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        a = self.sharpness * _difference(recon, batch, "LogCosh").abs()
        # log cosh a = a + log(1 + exp(-2 a)) - log 2, which never overflows
        return _mean(a + F.softplus(-2 * a) - math.log(2), batch) / self.sharpness


def _difference(recon: Reconstruction, batch: Batch, term: str) -> Tensor:
    x, y = reconstruction_of(recon, term), batch.x
    if x.shape != y.shape:
        raise ValueError(f"objective.terms: {term} x is {list(y.shape)}, decoded {list(x.shape)}")
    return x.float() - y.float()


def _mean(values: Tensor, batch: Batch) -> Tensor:
    """Mean of [B, C, *S] over all elements whose last position lies inside `batch.lengths`."""
    if batch.lengths is None:
        return values.mean()
    inside = torch.arange(values.shape[-1], device=values.device) < batch.lengths[:, None]
    inside = inside.view(len(values), *[1] * (values.dim() - 2), -1).expand_as(values)
    return (values * inside).sum() / inside.sum()
