"""Finite scalar quantization: every channel rounds to a few levels; the codebook is their product.

Legend: B batch, D channels = number of level counts, L levels of a channel, S positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmtok.quantizers.base import Quantizer, check_codes, code_stats, full_precision, masked_mean, to_vectors
from mmtok.quantizers.entropy import product_entropies
from mmtok.types import Quantized


class FSQ(Quantizer):
    """Bounded rounding (FSQ, arXiv 2309.15505, section 3 and appendix A.1).

    z [B, D, *S] with D = len(levels) -> one grid int64 [B, 1, *S], codes in [0, prod(levels)); channel 0 is the
    least significant digit. Values are divided by floor(level / 2), so they lie in [-1, 1].

        h = (L - 1) (1 + margin) / 2,  o = 0.5 for even L else 0,  s = atanh(o / h)
        value = round(tanh(z + s) h - o) / floor(L / 2)

    levels        number of values per channel, each at least 2
    margin        1e-3 lets the outer levels be reached (VidTok, Cosmos, X-Codec-2); the paper and ElasticTok have -1e-3
    tan_shift     s = tan(o / h), as the paper prints and ElasticTok was trained
    double_bound  bounds twice before rounding, as X-Codec-2 was trained
    entropy_temperature  adds the losses `commit`, `sample_entropy` and `diversity` (VidTok: 0.01) of
                  softmax(2 z c / temperature) over all codes; exact, it factorises into the channels. None: no losses
    """

    levels: Tensor
    basis: Tensor

    def __init__(
        self, levels: list[int], margin: float = 1e-3, tan_shift: bool = False, double_bound: bool = False,
        entropy_temperature: float | None = None,
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"quantizer.levels needs at least 2 values a channel, got {levels}")
        if margin < 0 and 2 in levels:
            raise ValueError("quantizer.margin must not be negative when a channel has 2 levels (atanh(1) is infinite)")
        if entropy_temperature is not None and entropy_temperature <= 0:
            raise ValueError(f"quantizer.entropy_temperature must be positive, got {entropy_temperature}")
        self.dim = len(levels)
        self.codebook_sizes = ((math.prod(levels),),)
        self.margin, self.tan_shift = margin, tan_shift
        self.double_bound = double_bound
        self.entropy_temperature = entropy_temperature
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
        bounded = self.bound(self.bound(z)) if self.double_bound else self.bound(z)
        rounded = bounded.round()
        half_width = self.levels // 2
        digits = (rounded.detach() + half_width).to(torch.int64)
        codes = (digits * self.basis).sum(-1)
        value = (bounded + (rounded - bounded).detach() if self.training else rounded) / half_width
        out, grid = value.movedim(-1, 1), codes[:, None]
        rows = None
        if keep is not None:
            mask = keep[0].expand_as(grid)
            out, grid, rows = out.masked_fill(~mask, 0), grid * mask, mask.flatten()
        losses = {}
        if self.entropy_temperature is not None:
            losses = self._losses(to_vectors(z.movedim(-1, 1)), (rounded.detach() / half_width).flatten(0, -2), rows)
        return Quantized(out, (grid,), losses, code_stats(codes.flatten(), self.codebook_sizes[0][0], rows))

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        digits = grids[0][:, 0, ..., None] // self.basis % self.levels
        half_width = self.levels // 2
        out = ((digits - half_width) / half_width).movedim(-1, 1)
        return out if keep is None else out.masked_fill(~keep[0], 0)

    def bound(self, z: Tensor) -> Tensor:
        """z [..., D] -> values whose rounding is a level, [..., D]."""
        half_levels = (self.levels - 1) * (1 + self.margin) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = torch.tan(offset / half_levels) if self.tan_shift else torch.atanh(offset / half_levels)
        return torch.tanh(z + shift) * half_levels - offset

    def _losses(self, vectors: Tensor, codes: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
        assert self.entropy_temperature is not None
        factors = []
        for z, level in zip(vectors.unbind(1), self.levels.tolist(), strict=True):
            half_width = level // 2
            values = (torch.arange(level, device=z.device) - half_width) / half_width
            factors.append((2 * z[:, None] * values / self.entropy_temperature).softmax(1))
        commit = masked_mean((vectors - codes).square(), rows)
        return {"commit": commit} | product_entropies(factors, rows)
