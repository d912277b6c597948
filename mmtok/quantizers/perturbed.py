"""Vector quantization whose training output is jittered among neighbouring codes.

Legend: B batch, N vectors, V codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.kernels import nearest_code
from mmtok.quantizers.base import from_vectors, full_precision, keep_mask, to_vectors
from mmtok.quantizers.vq import VQ
from mmtok.types import Quantized


class PerturbedVQ(VQ):
    """`VQ` on unit vectors that hands the decoder some wrong codes, as a generator would (RobustTok, arXiv 2503.08354).

    In training the first int(B * share * strength) items are perturbed: each position moves, with probability `rate`,
    to a code drawn uniformly among the `neighbours` nearest ones (its own included). Losses and statistics are those
    of the true codes; value and grid are the perturbed ones; the gradient passes straight through. Eval is plain VQ.

    rate        alpha of the paper
    share       beta: part of the batch that is perturbed
    neighbours  delta
    `strength` (attribute, 1 at the start) anneals the share; RobustTok lowers it linearly to 0.5.
    """

    def __init__(
        self, dim: int, codebook_size: int, rate: float = 1.0, share: float = 0.1, neighbours: int = 100,
        revival: float = 0.0, entropy_temperature: float | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, l2_norm=True, revival=revival, entropy_temperature=entropy_temperature)
        if not (0 <= rate <= 1 and 0 <= share <= 1):
            raise ValueError(f"quantizer.rate and share are probabilities, got {rate} and {share}")
        if not 1 <= neighbours <= codebook_size:
            raise ValueError(f"quantizer.neighbours must lie in 1..{codebook_size}, got {neighbours}")
        self.rate, self.share, self.neighbours = rate, share, neighbours
        self.strength = 1.0

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        # before the codebook learns from this batch, as the true codes are chosen
        table = self.table().detach()
        out = super().forward(z, keep)
        count = int(z.shape[0] * self.share * self.strength)
        if not self.training or not count:
            return out
        vectors = self.unit(to_vectors(z[:count].detach()))
        near = nearest_code(vectors, table, self.neighbours)[0].view(-1, self.neighbours)
        moves = torch.rand(len(near), device=z.device) <= self.rate
        ranks = torch.randint(self.neighbours, (len(near),), device=z.device) * moves
        return self.move(out, near.gather(1, ranks[:, None])[:, 0], table, keep)

    def move(self, out: Quantized, codes: Tensor, table: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        """`out` with the codes of its first items replaced by int64 [n], rows of `table` [V, D] in position order."""
        head = out.z[: len(codes) // out.grids[0][0].numel()]
        value = from_vectors(F.embedding(codes, table), head)
        grid = codes.view(len(head), 1, *head.shape[2:])
        mask, _ = keep_mask(keep, out.z)
        if mask is not None:
            value, grid = value.masked_fill(~mask[: len(head)], 0), grid * mask[: len(head)]
        z = torch.cat([head + (value - head).detach(), out.z[len(head) :]])
        return Quantized(z, (torch.cat([grid, out.grids[0][len(head) :]]),), out.losses, out.stats)
