"""Residual quantization over a pyramid of grids, coarse first, with a codebook per scale.

Legend: B batch, D channels, S latent grid ((T,), (h, w), (t, h, w)), S_i grid of scale i.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.keep import Shapes
from mmtok.quantizers.base import Quantizer, check_codes, full_precision
from mmtok.types import Quantized


class MultiScale(Quantizer):
    """Each scale codes what the coarser ones left over, on a grid `stride` times smaller than the latents.

    z [B, D, *S] -> one grid int64 [B, K_i, *ceil(S / s_i)] per scale. Per scale the residual is area-averaged,
    quantized, enlarged and subtracted (VAR, arXiv 2404.02905, algorithm 1, without the shared convolutions; SNAC,
    arXiv 2410.14411). A code that is not kept adds nothing to the sum, so any prefix of the grids decodes.

    quantizers  one per scale; each takes and returns D channels
    strides     s_i in latent positions along every axis, for example [4, 2, 1, 1]
    mode        of torch.nn.functional.interpolate when enlarging: "bilinear" for images, "nearest" for SNAC, "linear"
                or "trilinear" for other ranks
    through     values are subtracted with their gradient, as SNAC was trained; needed when the reconstruction trains
                parameters inside the scales (see `mmtok.quantizers.residual.Residual`)

    Losses are the means over the scales of the losses of the same name; statistics carry the scale as a suffix.
    """

    def __init__(
        self, quantizers: list[Quantizer], strides: list[int], mode: str = "bilinear", through: bool = False
    ) -> None:
        super().__init__()
        dims = {quantizer.dim for quantizer in quantizers}
        if len(quantizers) != len(strides) or not quantizers:
            raise ValueError(f"quantizer.strides: {len(strides)} strides for {len(quantizers)} quantizers")
        if len(dims) != 1 or min(strides) < 1:
            raise ValueError(f"quantizer: scales need one dim and strides of at least 1, got {sorted(dims)}, {strides}")
        if not through and any(quantizer.value_gradient for quantizer in quantizers):
            raise ValueError("quantizer.through must be true: the reconstruction trains parameters inside the scales")
        self.dim = dims.pop()
        self.scales = nn.ModuleList(quantizers)
        self.strides = list(strides)
        self.mode, self.through = mode, through
        self.value_gradient = through
        self.codebook_sizes = tuple(sizes for quantizer in quantizers for sizes in quantizer.codebook_sizes)

    def shapes(self, positions: tuple[int, ...]) -> Shapes:
        """(K_i, *S_i) per scale."""
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
            seen = total if self.through else total.detach()
            out = quantizer(F.interpolate(z - seen, shape[1:], mode="area"), mask)
            grown = self._grow(out.z, z)
            if self.training and not self.through:
                # the straight-through gradient of what coarser scales have already passed on must not count twice
                seen = F.interpolate(total, shape[1:], mode="area")
                seen = self._grow(seen if mask is None else seen * mask[0].any(1, keepdim=True), z)
                grown = grown - (seen - seen.detach())
            total = total + grown
            grids.append(out.grids[0])
            for name, value in out.losses.items():
                losses[name] = losses.get(name, torch.zeros_like(value)) + value / len(self.scales)
            stats |= {f"{name}_{index}": value for name, value in out.stats.items()}
        return Quantized(total, tuple(grids), losses, stats)

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        # the finest scale has the size of the latents
        fine = grids[self.strides.index(min(self.strides))]
        like = torch.zeros(fine.shape[0], self.dim, *fine.shape[2:], device=fine.device)
        total = torch.zeros_like(like)
        for index, (quantizer, grid) in enumerate(zip(self.scales, grids, strict=True)):
            mask = None if keep is None else (keep[index].expand_as(grid),)
            total = total + self._grow(quantizer.decode((grid,), mask), like)  # type: ignore[operator]
        return total

    def _grow(self, value: Tensor, like: Tensor) -> Tensor:
        if value.shape[2:] == like.shape[2:]:
            return value
        return F.interpolate(value, size=like.shape[2:], mode=self.mode)
