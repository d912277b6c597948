"""Contrast between predicted features and those of a frozen model.

Legend: B batch of one process, R processes, W width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.losses.base import Teacher, Term, head_of
from mmtok.types import Batch, Reconstruction


class FeatureContrast(Term):
    """InfoNCE: a predicted feature must be more like its own image's teacher feature than like the others' (FQGAN).

    teacher      frozen: images [B, 3, H, W] in [-1, 1] -> [B, W]; None reads `batch.features[features]` instead
    head         entry of `Reconstruction.heads`, float [B, W]
    temperature  divides the cosines (FQGAN: 1)
    gather       negatives come from all processes, so that the loss does not depend on how a batch is split
    """

    def __init__(
        self, teacher: nn.Module | None = None, head: str = "features_1", features: str = "teacher",
        temperature: float = 1.0, gather: bool = True,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"FeatureContrast.temperature must be positive, got {temperature}")
        self.teacher = None if teacher is None else Teacher(teacher)
        self.head, self.features, self.temperature, self.gather = head, features, temperature, gather

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        ours = head_of(recon, self.head, "FeatureContrast").float()
        theirs = self._target(batch).float()
        if ours.shape != theirs.shape:
            raise ValueError(f"FeatureContrast: head {list(ours.shape)}, teacher {list(theirs.shape)}: widths differ")
        rank = 0
        if self.gather and dist.is_available() and dist.is_initialized():
            rank = dist.get_rank()
            parts = [torch.empty_like(theirs) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, theirs.contiguous())
            theirs = torch.cat(parts)
        logits = F.normalize(ours, dim=1) @ F.normalize(theirs, dim=1).T / self.temperature
        own = torch.arange(len(ours), device=ours.device) + rank * len(ours)
        self.stats = {"accuracy": (logits.detach().argmax(1) == own).float().mean()}
        return F.cross_entropy(logits, own)

    @torch.no_grad()
    def _target(self, batch: Batch) -> Tensor:
        if self.features in batch.features:
            return batch.features[self.features]
        if self.teacher is None:
            raise ValueError(f"FeatureContrast.teacher: name a model, or bring batch features named {self.features}")
        return self.teacher(batch.x)
