"""Lookup-free quantization: a code is the signs of its channels.

Legend: B batch, n bits = channels, K codebooks (groups of bits), S positions, N = B * prod(S) vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.quantizers.base import full_precision, to_vectors
from mmtok.quantizers.binary import Binary
from mmtok.quantizers.entropy import product_entropies
from mmtok.types import Quantized


class LFQ(Binary):
    """Every channel becomes its sign, +1 where z > 0, else -1 (MAGVIT-v2, arXiv 2310.05737).

    z [B, n, *S] -> one grid int64 [B, K, *S], K = len(groups); channel 0 is the lowest bit by default. Losses: `commit`
    (mean squared distance to the code), and with a temperature `sample_entropy` and `diversity` of
    softmax(2 z c / temperature) over all 2^n codes: the softmax factorises into the bits, so the first is a sum of
    bit entropies and the second one matrix product, exact and without an N x 2^n matrix.

    bits                 n
    groups               bits of each code sent (default: one code of n bits)
    little_endian        bit order inside a code
    entropy_temperature  None: no entropy losses
    entropy_bits         largest group of bits whose joint mean distribution is formed; beyond it `diversity` sums over
                         groups of this many bits (1: independent bits)
    entropy_eps          inside the logarithm of the mean distribution (Open-MAGVIT2: 1e-5)
    """

    def __init__(
        self, bits: int, groups: list[int] | None = None, little_endian: bool = True,
        entropy_temperature: float | None = 0.01, entropy_bits: int = 18, entropy_eps: float = 1e-8,
    ) -> None:
        super().__init__(bits, groups, little_endian)
        if entropy_temperature is not None and entropy_temperature <= 0:
            raise ValueError(f"quantizer.entropy_temperature must be positive, got {entropy_temperature}")
        self.dim = bits
        self.entropy_temperature, self.entropy_bits, self.entropy_eps = entropy_temperature, entropy_bits, entropy_eps

    amplitude = 1.0

    def unit(self, z: Tensor) -> Tensor:
        """What is compared with the code, for latents [B, n, *S]."""
        return z

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        z = self.unit(z)
        bits = z > 0
        grid = self.pack(bits)
        code = torch.where(bits, self.amplitude, -self.amplitude)
        mask = self.channels(keep, grid)
        sent = torch.ones_like(bits) if mask is None else mask
        commit = ((z - code).square() * sent).sum() / sent.sum().clamp(min=1)
        losses = {"commit": commit}
        if self.entropy_temperature is not None:
            losses |= self._entropies(z, sent, self.entropy_temperature)
        out = z + (code - z).detach() if self.training else code
        stats = self.statistics(grid, keep)
        if mask is not None:
            assert keep is not None
            out, grid = out.masked_fill(~mask, 0), grid * keep[0]
        return Quantized(out, (grid,), losses, stats)

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        out = torch.where(self.unpack(grids), self.amplitude, -self.amplitude)
        mask = self.channels(keep, grids[0])
        return out if mask is None else out.masked_fill(~mask, 0)

    def _entropies(self, z: Tensor, sent: Tensor, temperature: float) -> dict[str, Tensor]:
        """Over the positions all of whose codes are sent."""
        # c = +-a in every channel: softmax over codes of 2 z c / T gives P(bit) = sigmoid(4 a z / T)
        on = torch.sigmoid(to_vectors(z) * (4 * self.amplitude / temperature))
        factors = [torch.stack([1 - p, p], 1) for p in on.unbind(1)]
        limit = 1 << max(1, self.entropy_bits)
        return product_entropies(factors, sent.all(1).flatten(), limit, self.entropy_eps)


class BSQ(LFQ):
    """Signs on the unit sphere: z is l2-normalised and every channel becomes +-1 / sqrt(n) (BSQ, arXiv 2406.07548).

    As `LFQ`, with channel 0 the highest bit and z = 0 counted as -1 by default, temperature 1, and `diversity` taken
    as the entropy of independent bits (the paper's analytic form; raise entropy_bits for joint ones).
    """

    def __init__(
        self, bits: int, groups: list[int] | None = None, little_endian: bool = False,
        entropy_temperature: float | None = 1.0, entropy_bits: int = 1, entropy_eps: float = 1e-8,
    ) -> None:
        super().__init__(bits, groups, little_endian, entropy_temperature, entropy_bits, entropy_eps)
        self.amplitude = bits**-0.5

    def unit(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=1)
