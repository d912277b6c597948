"""Finite scalar quantization: every channel rounds to a few levels; the codebook is their product.

Legend: B batch, D channels = number of level counts, S positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmtok.quantizers.base import Quantizer, check_codes, code_stats, full_precision
from mmtok.types import Quantized


class FSQ(Quantizer):
    """Bounded rounding (FSQ, arXiv 2309.15505, section 3 and appendix A.1).

    z [B, D, *S] with D = len(levels) -> one grid int64 [B, 1, *S], codes in [0, prod(levels)); channel 0 is the
    least significant digit. Values are divided by floor(level / 2), so they lie in [-1, 1]. No losses.

    levels  number of values per channel, each at least 2
    margin  widens tanh by (1 + margin) so that the outer levels can be reached; the paper prints 1 - eps
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: list[int], margin: float = 1e-3) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"quantizer.levels needs at least 2 values a channel, got {levels}")
        self.dim = len(levels)
        self.codebook_sizes = ((math.prod(levels),),)
        self.margin = margin
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        # int64 buffers: an average of weights must never touch them
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        if not bool(torch.isfinite(z).all()):
            if not self.training:
                raise ValueError("quantizer: the latents hold NaN or infinity")
            z = torch.nan_to_num(z)
        z = z.movedim(1, -1)
        half_levels = (self.levels - 1) * (1 + self.margin) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z + torch.atanh(offset / half_levels)) * half_levels - offset
        rounded = bounded.round()
        half_width = self.levels // 2
        digits = (rounded.detach() + half_width).to(torch.int64)
        codes = (digits * self.basis).sum(-1)
        value = (bounded + (rounded - bounded).detach() if self.training else rounded) / half_width
        out, grid = value.movedim(-1, 1), codes[:, None]
        rows = None
        if keep is not None:
            mask = keep[0].expand_as(grid)
            out, grid, rows = out * mask, grid * mask, mask.flatten()
        return Quantized(out, (grid,), {}, code_stats(codes.flatten(), self.codebook_sizes[0][0], rows))

    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        digits = grids[0][:, 0, ..., None] // self.basis % self.levels
        half_width = self.levels // 2
        out = ((digits - half_width) / half_width).movedim(-1, 1)
        return out if keep is None else out * keep[0]
