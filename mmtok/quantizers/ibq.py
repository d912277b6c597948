"""Index backpropagation: every code gets a gradient at every step.

Legend: B batch, D channels, N vectors, V codes, p softmax of the logits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.quantizers.base import (
    Quantizer,
    check_codes,
    code_stats,
    from_vectors,
    full_precision,
    keep_mask,
    masked_mean,
    to_vectors,
)
from mmtok.quantizers.entropy import assignment_entropies
from mmtok.types import Quantized

CHUNK_ENTRIES = 1 << 22


class IBQ(Quantizer):
    """Code of the largest inner product, with the gradient of the soft assignment (IBQ, arXiv 2412.02692).

    z [B, D, *S] -> one grid int64 [B, 1, *S]. The value is the code; its gradient is that of
    (onehot - sg(p) + p) C, so the reconstruction trains all of C: no code dies, nothing is re-seeded.
    Losses: `index` = mean (z_q - z)^2 with all gradients, `commit`, `codebook` (their weights in the paper: 1, 1, .25),
    and, with a temperature, `sample_entropy` and `diversity` of softmax(logits / temperature)
    (`entropy_eps` inside the logarithm of the latter's mean distribution; SEED-Voken: 1e-5).
    No N x V matrix is kept: forward, backward and entropies run in chunks of rows.
    """

    value_gradient = True

    def __init__(
        self, dim: int, codebook_size: int, entropy_temperature: float | None = 0.01, entropy_eps: float = 1e-8,
    ) -> None:
        super().__init__()
        if dim < 1 or codebook_size < 1:
            raise ValueError(f"quantizer: dim and codebook_size must be positive, got {dim} and {codebook_size}")
        if entropy_temperature is not None and entropy_temperature <= 0:
            raise ValueError(f"quantizer.entropy_temperature must be positive, got {entropy_temperature}")
        self.dim = dim
        self.codebook_sizes = ((codebook_size,),)
        self.entropy_temperature, self.entropy_eps = entropy_temperature, entropy_eps
        self.codebook = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size))

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        mask, rows = keep_mask(keep, z)
        vectors, table = to_vectors(z), self.codebook.float()
        codes = _best(vectors.detach(), table.detach())
        hard = F.embedding(codes, table)
        value = _Propagate.apply(vectors, table, codes) if self.training else hard
        losses = {
            "index": masked_mean((value - vectors).square(), rows),
            "commit": masked_mean((vectors - hard.detach()).square(), rows),
            "codebook": masked_mean((hard - vectors.detach()).square(), rows),
        }
        if self.entropy_temperature is not None:
            temperature = self.entropy_temperature
            losses |= assignment_entropies(
                lambda x: x @ table.T / temperature, vectors, len(table), rows, self.entropy_eps
            )
        out, grid = from_vectors(value, z), codes.view(z.shape[0], 1, *z.shape[2:])
        if mask is not None:
            out, grid = out.masked_fill(~mask, 0), grid * mask
        return Quantized(out, (grid,), losses, code_stats(codes, len(table), rows))

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        out = F.embedding(grids[0][:, 0], self.codebook.float()).movedim(-1, 1)
        return out if keep is None else out.masked_fill(~keep[0], 0)


class _Propagate(torch.autograd.Function):
    """codes -> rows of the table; backward through (onehot - sg(p) + p) C with p made again chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, table: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, table, codes)
        return F.embedding(codes, table)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        vectors, table, codes = ctx.saved_tensors
        (grad,) = grads
        d_table = torch.zeros_like(table).index_add_(0, codes, grad)
        d_vectors = torch.empty_like(vectors)
        for at in torch.arange(len(vectors)).split(_rows(table)):
            part = slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0)
            p = (vectors[part] @ table.T).softmax(1)
            d_p = grad[part] @ table.T
            d_logits = p * (d_p - (p * d_p).sum(1, keepdim=True))
            d_vectors[part] = d_logits @ table
            d_table += d_logits.T @ vectors[part]
        return d_vectors, d_table, None


def _rows(table: Tensor) -> int:
    return max(1, CHUNK_ENTRIES // len(table))


def _best(vectors: Tensor, table: Tensor) -> Tensor:
    """int64 [N]: code of the largest inner product."""
    parts = [(chunk @ table.T).argmax(1) for chunk in vectors.split(_rows(table))]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=vectors.device)
