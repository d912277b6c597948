"""Residual quantization over a pyramid of grids, coarse first.

Legend: B batch, D channels, h w latent grid, h_i w_i grid of scale i.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.keep import Shapes
from mmtok.quantizers.base import Quantizer, full_precision
from mmtok.types import Quantized


class MultiScale(Quantizer):
    """Each scale codes what the coarser ones left over, on a grid `stride` times smaller than the latents.

    z [B, D, h, w] -> one grid int64 [B, K_i, ceil(h / s_i), ceil(w / s_i)] per scale. Per scale the residual is
    area-averaged, quantized, upsampled bilinearly and subtracted (VAR, arXiv 2404.02905, algorithm 1, without the
    shared convolutions). A code that is not kept adds nothing to the sum, so any prefix of the grids decodes.

    quantizers  one per scale; each takes and returns D channels
    strides     s_i in latent positions, for example [4, 2, 1, 1]

    Losses are the means over the scales of the losses of the same name; statistics carry the scale as a suffix.
    """

    def __init__(self, quantizers: list[Quantizer], strides: list[int]) -> None:
        super().__init__()
        dims = {quantizer.dim for quantizer in quantizers}
        if len(quantizers) != len(strides) or not quantizers:
            raise ValueError(f"quantizer.strides: {len(strides)} strides for {len(quantizers)} quantizers")
        if len(dims) != 1 or min(strides) < 1:
            raise ValueError(f"quantizer: scales need one dim and strides of at least 1, got {sorted(dims)}, {strides}")
        self.dim = dims.pop()
        self.scales = nn.ModuleList(quantizers)
        self.strides = list(strides)
        self.codebook_sizes = tuple(sizes for quantizer in quantizers for sizes in quantizer.codebook_sizes)

    def shapes(self, positions: tuple[int, ...]) -> Shapes:
        """(K_i, h_i, w_i) per scale."""
        return tuple(
            (len(sizes), *(-(-n // stride) for n in positions))
            for sizes, stride in zip(self.codebook_sizes, self.strides, strict=True)
        )

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        total, grids = torch.zeros_like(z), []
        losses: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        for index, (quantizer, shape) in enumerate(zip(self.scales, self.shapes(tuple(z.shape[2:])), strict=True)):
            mask = None if keep is None else (keep[index].expand(z.shape[0], *shape),)
            # detached, so that `commit` still pulls the encoder to the sum of all codes
            out = quantizer(F.adaptive_avg_pool2d(z - total.detach(), shape[1:]), mask)
            grown = self._grow(out.z, z)
            if self.training:
                # the straight-through gradient of what coarser scales have already passed on must not count twice
                seen = F.adaptive_avg_pool2d(total, shape[1:])
                seen = self._grow(seen if mask is None else seen * mask[0].any(1, keepdim=True), z)
                grown = grown - (seen - seen.detach())
            total = total + grown
            grids.append(out.grids[0])
            for name, value in out.losses.items():
                losses[name] = losses.get(name, torch.zeros_like(value)) + value / len(self.scales)
            stats |= {f"{name}_{index}": value for name, value in out.stats.items()}
        return Quantized(total, tuple(grids), losses, stats)

    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        # the finest scale has the size of the latents
        fine = grids[self.strides.index(min(self.strides))]
        like = torch.zeros(fine.shape[0], self.dim, *fine.shape[2:], device=fine.device)
        total = torch.zeros_like(like)
        for index, (quantizer, grid) in enumerate(zip(self.scales, grids, strict=True)):
            mask = None if keep is None else (keep[index].expand_as(grid),)
            total = total + self._grow(quantizer.decode((grid,), mask), like)
        return total

    def _grow(self, value: Tensor, like: Tensor) -> Tensor:
        if value.shape[2:] == like.shape[2:]:
            return value
        return F.interpolate(value, size=like.shape[2:], mode="bilinear")
