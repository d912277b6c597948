"""Residual quantization at several frame rates.

Legend: B batch, D channels, T frames, T_i = T / stride_i frames of level i, K codebooks of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtok.keep import Shapes
from mmtok.quantizers.base import Quantizer, check_codes, full_precision
from mmtok.types import Quantized


class StridedResidual(Quantizer):
    """Each level averages the residual over its stride, quantizes, repeats and subtracts (SNAC, arXiv 2410.14411).

    z [B, D, T], T a multiple of every stride -> one grid int64 [B, K, T / stride] a level, coarse first. `keep` masks
    what is added and subtracted, losses and statistics. Losses are means over levels; statistics carry the level as a
    suffix. Values are subtracted with their gradient, as SNAC was trained.

    quantizers  one a level, each with a single grid
    strides     frames that share a code, one a level
    """

    value_gradient = True

    def __init__(self, quantizers: list[Quantizer], strides: list[int]) -> None:
        super().__init__()
        if not quantizers or len(quantizers) != len(strides) or min(strides) < 1:
            raise ValueError(f"quantizer.strides: one positive stride a level, got {strides} for {len(quantizers)}")
        if len({quantizer.dim for quantizer in quantizers}) != 1 or any(len(q.codebook_sizes) != 1 for q in quantizers):
            raise ValueError("quantizer.quantizers: levels need one dim and one grid each")
        self.dim = quantizers[0].dim
        self.levels = nn.ModuleList(quantizers)
        self.strides = list(strides)
        self.codebook_sizes = tuple(quantizer.codebook_sizes[0] for quantizer in quantizers)

    def shapes(self, positions: tuple[int, ...]) -> Shapes:
        return tuple(
            (len(sizes), *positions[:-1], positions[-1] // stride)
            for sizes, stride in zip(self.codebook_sizes, self.strides, strict=True)
        )

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        if any(z.shape[-1] % stride for stride in self.strides):
            raise ValueError(f"quantizer: {z.shape[-1]} frames are not a multiple of the strides {self.strides}")
        rest, total = z, torch.zeros_like(z)
        grids: list[Tensor] = []
        losses: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        for index, (level, stride) in enumerate(zip(self.levels, self.strides, strict=True)):
            own = rest.unflatten(-1, (-1, stride)).mean(-1) if stride > 1 else rest
            part = None
            if keep is not None:
                part = (keep[index].expand(z.shape[0], len(self.codebook_sizes[index]), own.shape[-1]),)
            out = level(own, part)
            value = out.z.repeat_interleave(stride, -1)
            rest, total = rest - value, total + value
            grids.append(out.grids[0])
            for name, loss in out.losses.items():
                losses[name] = losses.get(name, torch.zeros_like(loss)) + loss / len(self.strides)
            stats |= {f"{name}_{index}": found for name, found in out.stats.items()}
        return Quantized(total, tuple(grids), losses, stats)

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        total: Tensor | None = None
        for index, (level, stride) in enumerate(zip(self.levels, self.strides, strict=True)):
            mask = None if keep is None else (keep[index].expand_as(grids[index]),)
            value: Tensor = level.decode((grids[index],), mask)  # type: ignore[operator]
            value = value.repeat_interleave(stride, -1)
            total = torch.zeros_like(value) + value if total is None else total + value
        assert total is not None
        return total
