"""Nearest code by squared Euclidean distance, in memory that does not grow with N x V.

Legend: N vectors, D dimensions, V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ENTRIES = 1 << 22  # distance entries held at once: 16 MiB of float32


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """int64 [N]: index of the code nearest to each vector; the lowest index wins a tie.

    vectors [N, D] and codebook [V, D], float32. |x - c|^2 is expanded, and both sides are centred by the codebook
    mean first: with a large shared mean the plain expansion loses the digits that tell neighbours apart.
    """
    centre = codebook.mean(0)
    codes = codebook - centre
    half_norm = codes.square().sum(1) / 2
    rows = max(1, CHUNK_ENTRIES // max(1, codebook.shape[0]))
    parts = [torch.addmm(half_norm, chunk - centre, codes.T, alpha=-1).argmin(1) for chunk in vectors.split(rows)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=vectors.device)


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor, k: int) -> Tensor:
    """int64 [N, k]: the k nearest codes of each vector, nearest first; otherwise as `nearest_code`."""
    centre = codebook.mean(0)
    codes = codebook - centre
    half_norm = codes.square().sum(1) / 2
    rows = max(1, CHUNK_ENTRIES // max(1, codebook.shape[0]))
    parts = [
        torch.addmm(half_norm, chunk - centre, codes.T, alpha=-1).topk(k, 1, largest=False).indices
        for chunk in vectors.split(rows)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, k, dtype=torch.int64, device=vectors.device)


@torch.no_grad()
def code_sums(vectors: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many vectors chose each code, float32 [V], and the sum of those vectors, float32 [V, D]."""
    sums = torch.zeros(size, vectors.shape[1], device=vectors.device).index_add_(0, codes, vectors)
    return torch.bincount(codes, minlength=size).to(sums.dtype), sums
