"""Distances between predicted features and those of a frozen model.

Legend: B batch, P places, E width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.losses.base import Teacher, Term, head_of
from mmtok.types import Batch, Reconstruction


class FeatureCosine(Term):
    """Mean of 1 - cos between head [B, P, E] and the teacher's features of the same places (TokenFlow).

    teacher   frozen: images [B, 3, H, W] in [-1, 1] -> [B, P, E]; None reads `batch.features[features]` instead
    """

    def __init__(
        self, teacher: nn.Module | None = None, head: str = "teacher_features", features: str = "teacher"
    ) -> None:
        super().__init__()
        self.teacher = None if teacher is None else Teacher(teacher)
        self.head, self.features = head, features

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        name = type(self).__name__
        ours, theirs = head_of(recon, self.head, name).float(), self._target(batch, name).float()
        if ours.shape != theirs.shape:
            raise ValueError(f"{name}: head {list(ours.shape)}, teacher {list(theirs.shape)}: make them equal")
        return self.distance(ours, theirs)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Scalar, from features of one shape."""
        return 1 - F.cosine_similarity(ours, theirs, dim=-1).mean()

    @torch.no_grad()
    def _target(self, batch: Batch, name: str) -> Tensor:
        if self.features in batch.features:
            return batch.features[self.features]
        if self.teacher is None:
            raise ValueError(f"{name}.teacher: name a model, or bring batch features named {self.features}")
        return self.teacher(batch.x)


class FeatureMSE(FeatureCosine):
    """Mean squared difference instead (SEED's image embedding); arguments as `FeatureCosine`."""

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return F.mse_loss(ours, theirs)
