"""Contrast between what a tokenizer pools from its codes and teacher features seen through one of its own layers.

Legend: B batch of one process, R processes, W teacher width, D code dimension.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.losses.base import Teacher, Term, head_of
from mmtok.types import Batch, Reconstruction


class LayerContrast(Term):
    """CLIP's symmetric contrast of head [B, D] and layer(teacher(x)) (ImageFolder, arXiv 2410.01756).

    Inner products as they are, times `gain`; negatives come from all processes, with gradients. The layer is trained
    through both sides.

    teacher    frozen: images [B, 3, H, W] in [-1, 1] -> [B, W]; None reads `batch.features[features]` instead
    layer      module of the tokenizer that maps [B, W] to [B, D]
    head       entry of `Reconstruction.heads`
    normalize  compare unit vectors
    """

    def __init__(
        self, teacher: nn.Module | None = None, layer: str = "encoder.project", head: str = "semantic",
        features: str = "teacher", gain: float = 1.0, normalize: bool = False,
    ) -> None:
        super().__init__()
        self.teacher = None if teacher is None else Teacher(teacher)
        self.layer, self.head, self.features = layer, head, features
        self.gain, self.normalize = gain, normalize
        self._bound: tuple[nn.Module, ...] = ()

    def bind(self, tokenizer: nn.Module) -> None:
        modules = dict(tokenizer.named_modules())
        if self.layer not in modules:
            raise ValueError(f"LayerContrast.layer: the tokenizer has no module {self.layer!r}")
        self._bound = (modules[self.layer],)  # a tuple, so that it is not registered here

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        ours = head_of(recon, self.head, "LayerContrast").float()
        theirs = self._bound[0](self._teacher(batch).to(ours)).float()
        if ours.shape != theirs.shape:
            raise ValueError(f"LayerContrast: head {list(ours.shape)}, layer gives {list(theirs.shape)}: make equal")
        if self.normalize:
            ours, theirs = F.normalize(ours, dim=1), F.normalize(theirs, dim=1)
        every, rank = (ours, theirs), 0
        if dist.is_available() and dist.is_initialized():
            from torch.distributed.nn.functional import all_gather

            rank = dist.get_rank()
            every = (torch.cat(all_gather(ours)), torch.cat(all_gather(theirs)))
        own = torch.arange(len(ours), device=ours.device) + rank * len(ours)
        rows, columns = self.gain * theirs @ every[0].T, self.gain * ours @ every[1].T
        self.stats = {"accuracy": (columns.detach().argmax(1) == own).float().mean()}
        return (F.cross_entropy(rows, own) + F.cross_entropy(columns, own)) / 2

    @torch.no_grad()
    def _teacher(self, batch: Batch) -> Tensor:
        if self.features in batch.features:
            return batch.features[self.features]
        if self.teacher is None:
            raise ValueError(f"LayerContrast.teacher: name a model, or bring batch features named {self.features}")
        return self.teacher(batch.x)
