"""Scalar quantization with even steps, nothing learned.

Legend: B batch, S positions, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.quantizers.base import Quantizer, check_codes, code_stats, full_precision
from mmtok.types import Quantized


class Uniform(Quantizer):
    """z [B, 1, *S] in [-1, 1] -> one grid int64 [B, 1, *S]: the nearest of L values from -1 to 1, ends included.

    Values beyond the ends become the ends; the gradient passes straight through. No losses: for what is measured, a
    pitch for instance, and not learned. ValueError for NaN but in training.

    levels  L, at least 2
    """

    dim = 1

    def __init__(self, levels: int) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"quantizer.levels must be at least 2, got {levels}")
        self.levels = levels
        self.codebook_sizes = ((levels,),)

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        if bool(z.isnan().any()):
            if not self.training:
                raise ValueError("quantizer: the latents hold NaN")
            z = torch.nan_to_num(z)  # the task skips such a batch
        grid = ((z.detach().clamp(-1, 1) + 1) * (0.5 * (self.levels - 1))).round().long()
        out = self._values(grid)
        if self.training:
            out = z + (out - z).detach()
        mask = None
        if keep is not None:
            mask = keep[0].expand_as(grid)
            out, grid = out.masked_fill(~mask, 0), grid * mask
        rows = None if mask is None else mask.flatten()
        return Quantized(out, (grid,), {}, code_stats(grid.flatten(), self.levels, rows))

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        out = self._values(grids[0])
        return out if keep is None else out.masked_fill(~keep[0].expand_as(out), 0)

    def _values(self, grid: Tensor) -> Tensor:
        return grid.float() * (2 / (self.levels - 1)) - 1
