"""Entropies of soft assignments that never build an N x V matrix.

Legend: N vectors, V codes, n factors with L_i values each (bits: 2, levels of FSQ: L_i), W weight of kept rows.

Every function returns two losses in nats, both to be made small with positive weights:
`sample_entropy`, the mean entropy of a vector's distribution over codes (small: each vector is sure of its code), and
`diversity`, minus the entropy of the mean distribution (small: all codes are used). Reference: MaskGIT-VQGAN, LFQ
(arXiv 2310.05737, equation 7). Both are of this process's batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ENTRIES = 1 << 22
TINY = 1e-8


def product_entropies(
    factors: list[Tensor], rows: Tensor | None = None, limit: int = 1 << 18, eps: float = TINY
) -> dict[str, Tensor]:
    """Both losses when a vector's distribution over codes is a product of independent factors.

    factors  float32 [N, L_i], rows sum to 1. With logits that are sums over channels (inner products, squared
             distances) the softmax over all prod(L_i) codes is such a product, exactly
    rows     bool [N], which vectors count
    limit    largest codebook whose mean distribution is formed. A larger codebook is cut into groups of factors below
             the limit and `diversity` is the sum over groups: a lower bound that ignores what groups share
    eps      added inside the logarithm of the mean distribution

    Cost: the mean distribution of V codes is a matrix product of two factors of N x sqrt(V); no N x V matrix.
    """
    count = factors[0].shape[0]
    weight = torch.ones(count, device=factors[0].device) if rows is None else rows.float()
    weight = weight / weight.sum().clamp(min=1)
    sample = sum((-(p * (p + TINY).log()).sum(1) * weight).sum() for p in factors)
    diversity = torch.zeros((), device=factors[0].device)
    for group in _groups(factors, limit):
        left, right = _halves(group)
        mean = (left * weight[:, None]).T @ right
        diversity = diversity + (mean * (mean + eps).log()).sum()
    return {"sample_entropy": torch.as_tensor(sample), "diversity": diversity}


def assignment_entropies(
    logits: Callable[[Tensor], Tensor], vectors: Tensor, size: int, rows: Tensor | None = None, eps: float = TINY
) -> dict[str, Tensor]:
    """Both losses of softmax(logits(vectors)) over V codes without structure: exact, in chunks of rows.

    logits   maps float32 [m, D] to [m, V]; recomputed in the backward pass, so that only one chunk lives at a time
    vectors  [N, D]; rows bool [N], which of them count
    """
    if rows is not None:
        vectors = vectors[rows]
    if not len(vectors):
        zero = vectors.sum() * 0
        return {"sample_entropy": zero, "diversity": zero}

    def chunk_terms(chunk: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits(chunk).log_softmax(1)
        p = log_p.exp()
        return -(p * log_p).sum(), p.sum(0)

    parts = [
        checkpoint(chunk_terms, chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in vectors.split(max(1, CHUNK_ENTRIES // size))
    ]
    mean = torch.stack([part[1] for part in parts]).sum(0) / len(vectors)
    sample = torch.stack([part[0] for part in parts]).sum() / len(vectors)
    return {"sample_entropy": sample, "diversity": (mean * (mean + eps).log()).sum()}


def _groups(factors: list[Tensor], limit: int) -> list[list[Tensor]]:
    """Neighbouring factors, as many as fit under the limit."""
    groups: list[list[Tensor]] = [[]]
    for factor in factors:
        if groups[-1] and math.prod(f.shape[1] for f in groups[-1]) * factor.shape[1] > limit:
            groups.append([])
        groups[-1].append(factor)
    return groups


def _halves(group: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The joint distributions of the first and of the other factors, near equal in size: [N, a] and [N, b]."""
    sizes = [factor.shape[1] for factor in group]
    cut = min(range(len(group)), key=lambda i: math.prod(sizes[:i]) + math.prod(sizes[i:]))
    return _joint(group[:cut], group[0]), _joint(group[cut:], group[0])


def _joint(factors: list[Tensor], like: Tensor) -> Tensor:
    joint = like.new_ones(like.shape[0], 1)
    for factor in factors:
        joint = (joint[:, :, None] * factor[:, None, :]).flatten(1)
    return joint
