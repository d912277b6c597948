"""Bernoulli bits: a position is n coin flips, each with an embedding.

Legend: B batch, D channels, n bits, K codebooks (groups of bits), S positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.quantizers.base import full_precision, to_vectors
from mmtok.quantizers.binary import Binary
from mmtok.quantizers.entropy import product_entropies
from mmtok.types import Quantized


class BernoulliBits(Binary):
    """p = sigmoid(W z + b); bits ~ Bernoulli(p) in training, p > 0.5 in eval; value = sum of the embeddings of the bits
    that are on (BAE of ELM, arXiv 2410.16257).

    z [B, D, *S] -> one grid int64 [B, K, *S], channel 0 the highest bit. The gradient passes through p. Losses: with
    `entropy`, `sample_entropy` and `diversity` of the bits. The reference samples at inference too; here eval is
    deterministic.

    dim      D of the latents and of the embeddings
    bits     n
    groups   bits of each code sent (default: one code of n bits; the paper predicts [8, 8])
    entropy  whether the entropy losses are computed
    """

    value_gradient = True

    def __init__(
        self, dim: int, bits: int, groups: list[int] | None = None, little_endian: bool = False, entropy: bool = False
    ) -> None:
        super().__init__(bits, groups, little_endian)
        self.dim = dim
        self.entropy = entropy
        self.project = nn.Linear(dim, bits)
        self.embedding = nn.Parameter(torch.randn(bits, dim))

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        p = torch.sigmoid(F.linear(z.movedim(1, -1), self.project.weight.float(), self.project.bias.float()))
        # NaN compares as false, so that a bad batch still makes valid codes
        on = torch.rand_like(p) < p if self.training else p > 0.5
        grid = self.pack(on.movedim(-1, 1))
        mask = self.channels(keep, grid)
        weights = on.float()
        if self.training:
            weights = p + (weights - p).detach()
        losses = {}
        if self.entropy:
            rows = None if mask is None else mask.all(1).flatten()
            factors = [torch.stack([1 - q, q], 1) for q in to_vectors(p.movedim(-1, 1)).unbind(1)]
            losses = product_entropies(factors, rows)
        stats = self.statistics(grid, keep)
        if mask is not None:
            assert keep is not None
            weights, grid = weights.masked_fill(~mask.movedim(1, -1), 0), grid * keep[0]
        return Quantized(self._value(weights), (grid,), losses, stats)

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        bits = self.unpack(grids)
        mask = self.channels(keep, grids[0])
        bits = bits if mask is None else bits & mask
        return self._value(bits.movedim(1, -1).float())

    def _value(self, weights: Tensor) -> Tensor:
        """[B, *S, n] -> [B, D, *S]."""
        return (weights.contiguous() @ self.embedding.float()).movedim(-1, 1)
