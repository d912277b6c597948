"""Wrappers around a quantizer: a projection into its space and back, and unit vectors in.

Legend: B batch, D channels outside, d channels of the quantizer inside, S positions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mmtok.keep import Shapes
from mmtok.quantizers.base import Quantizer, full_precision, kept_positions
from mmtok.types import Quantized


class Projected(Quantizer):
    """1x1 convolution D -> d, quantizer, 1x1 convolution d -> D: the factorised codebook of DAC (arXiv 2306.06546).

    z [B, D, *S] -> the grids, losses and statistics of the quantizer inside; losses are measured in its space. The
    straight-through gradient passes both projections, and the reconstruction trains them.

    quantizer    works on d = quantizer.dim channels
    dim          D
    weight_norm  both projections have weight norm per output channel, as in DAC
    bias         both projections have a bias (Mimi: none)
    """

    value_gradient = True

    def __init__(self, quantizer: Quantizer, dim: int, weight_norm: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.codebook_sizes = quantizer.codebook_sizes
        self.quantizer = quantizer
        self.project_in = _linear(dim, quantizer.dim, weight_norm, bias)
        self.project_out = _linear(quantizer.dim, dim, weight_norm, bias)

    def shapes(self, positions: tuple[int, ...]) -> Shapes:
        return self.quantizer.shapes(positions)

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        out = self.quantizer(self.inward(z), keep)
        return Quantized(self._outward(out.z, keep), out.grids, out.losses, out.stats)

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        return self._outward(self.quantizer.decode(grids, keep), keep)

    def inward(self, z: Tensor) -> Tensor:
        """Latents [B, D, *S] as the quantizer sees them, [B, d, *S]."""
        return _apply(self.project_in, z)

    def _outward(self, value: Tensor, keep: tuple[Tensor, ...] | None) -> Tensor:
        out = _apply(self.project_out, value)
        kept = kept_positions(keep, out)
        return out if kept is None else out.masked_fill(~kept, 0)  # the bias must not speak where nothing is sent


class Normalized(Quantizer):
    """A quantizer fed with l2-normalised latents (LaVIT, OmniTokenizer, binary ImageFolder); codes untouched."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.dim = quantizer.dim
        self.codebook_sizes = quantizer.codebook_sizes
        self.quantizer = quantizer
        self.value_gradient = quantizer.value_gradient

    def shapes(self, positions: tuple[int, ...]) -> Shapes:
        return self.quantizer.shapes(positions)

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        return self.quantizer(F.normalize(z, dim=1), keep)

    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        return self.quantizer.decode(grids, keep)


def _linear(inputs: int, outputs: int, normed: bool, bias: bool) -> nn.Module:
    layer = nn.Linear(inputs, outputs, bias)
    return weight_norm(layer) if normed else layer


def _apply(layer: nn.Module, z: Tensor) -> Tensor:
    """A linear layer over axis 1; contiguous rows, so that forward and decode run the very same product."""
    return layer(z.movedim(1, -1).contiguous()).movedim(-1, 1)
