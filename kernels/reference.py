"""The operators in plain torch: what every other implementation must agree with, and the path where none is built.

Legend: N vectors, D dimensions, V codes, Q depths. About 12 MiB beyond inputs and outputs for any N and V.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCRATCH_ENTRIES = 1 << 19  # float32 entries of one temporary (2 MiB); three are alive at once


def nearest_code(x: Tensor, codebook: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """k nearest codes int64 [N, k] and squared distances float32 [N, k], nearest first, lowest index first in a tie.

    |x - c|^2 is expanded and both sides are centred by the codebook mean: with a large shared mean the plain
    expansion loses the digits that tell neighbours apart. The distances returned are sums of squared differences.
    """
    size = codebook.shape[0]
    centre = codebook.mean(0, dtype=torch.float32)
    first_equal = _first_equal(codebook) if k == 1 else None
    found = torch.empty(x.shape[0], k, dtype=torch.int64, device=x.device)
    distance = torch.empty(x.shape[0], k, dtype=torch.float32, device=x.device)
    dim = max(1, x.shape[1])
    columns = min(size, max(k, min(4096, SCRATCH_ENTRIES // (2 * dim)), 1))
    rows = max(1, min(SCRATCH_ENTRIES // columns, SCRATCH_ENTRIES // (2 * dim * k)))
    for start in range(0, x.shape[0], rows):
        part = x[start : start + rows].float()
        centred = part - centre
        best_score = torch.empty(len(part), 0, device=x.device)
        best = torch.empty(len(part), 0, dtype=torch.int64, device=x.device)
        for first in range(0, size, columns):
            codes = codebook[first : first + columns].float() - centre
            score = torch.addmm(codes.square().sum(1) / 2, centred, codes.T, alpha=-1)
            # a stable sort over (already best, new) keeps the lowest index first among equals
            new_score, new = _smallest(score, min(k, len(codes)))
            merged = torch.cat([best_score, new_score], 1)
            order = merged.argsort(dim=1, stable=True)[:, :k]
            best_score = merged.gather(1, order)
            best = torch.cat([best, new + first], 1).gather(1, order)
        difference = part[:, None] - codebook[best].float()
        exact = difference.square().sum(2)
        if first_equal is not None:
            best = first_equal[best]
        order = best.argsort(dim=1, stable=True)
        order = order.gather(1, exact.gather(1, order).argsort(dim=1, stable=True))
        found[start : start + rows] = best.gather(1, order)
        distance[start : start + rows] = exact.gather(1, order)
    return found, distance


def _smallest(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row with their indices, lowest index first among equals."""
    if k == 1:
        index = score.argmin(1, keepdim=True)
        return score.gather(1, index), index
    order = score.argsort(dim=1, stable=True)[:, :k]
    return score.gather(1, order), order


def _first_equal(codebook: Tensor) -> Tensor:
    """int64 [V]: the lowest index that holds the same code. BLAS may round the scores of equal codes differently."""
    # equal codes have equal keys; so may a few others, which the comparison below tells apart
    key = (codebook.float() * torch.linspace(0.7, 1.9, codebook.shape[1], device=codebook.device)).sum(1)
    order = key.argsort(stable=True)
    first = torch.arange(len(codebook), device=codebook.device)
    for at in (key[order[1:]] == key[order[:-1]]).nonzero()[:, 0].split(1 << 12):
        low, high = order[at], order[at + 1]
        same = (codebook[low] == codebook[high]).all(1)
        first[high[same]] = low[same]
    while not torch.equal(first, first[first]):  # chains: a copy of a copy
        first = first[first]
    return first


def _check_range(codes: Tensor, size: int) -> None:
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= size):
        raise IndexError(f"mmtok.kernels: a code lies outside its codebook of {size}")


def residual_encode(x: Tensor, codebooks: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes int64 [N, Q] (0 from each row's depth on) and the float32 [N, D] sum of the codes chosen."""
    quantizers = codebooks.shape[0]
    residual = x.to(torch.float32, copy=True)
    total = torch.zeros_like(residual)
    codes = torch.zeros(x.shape[0], quantizers, dtype=torch.int64, device=x.device)
    for q in range(quantizers):
        chosen = nearest_code(residual, codebooks[q], 1)[0][:, 0]
        picked = codebooks[q][chosen].float()
        if depth is not None:
            active = depth > q
            chosen = chosen * active
            picked = torch.where(active[:, None], picked, 0.0)
        codes[:, q] = chosen
        residual -= picked
        total += picked
    return codes, total


def gather_add_(out: Tensor, codes: Tensor, codebooks: Tensor, alpha: float) -> None:
    """out [N, D] += alpha * sum over q of codebooks[q, codes[:, q]]; codes [N, Q], codebooks [Q, V, D]."""
    _check_range(codes, codebooks.shape[1])
    for q in range(codes.shape[1]):
        out.add_(codebooks[q][codes[:, q]], alpha=alpha)


def code_sums(x: Tensor, codes: Tensor, size: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """How many rows chose each code, float32 [V], and the float32 sum [V, D] of those rows, in row order."""
    if mask is not None:
        x, codes = x[mask], codes[mask]
    _check_range(codes, size)
    counts = torch.bincount(codes, minlength=size).float()
    sums = torch.zeros(size, x.shape[1], device=x.device)
    if x.device.type == "cpu":
        return counts, sums.index_add_(0, codes, x.float())
    # index_add_ on an accelerator adds in any order; sorted segments add in row order
    order = codes.argsort(stable=True)
    lengths = torch.bincount(codes, minlength=size)
    return counts, torch.segment_reduce(x.float()[order], "sum", lengths=lengths, axis=0)


def snake(x: Tensor, alpha: Tensor, inverse: Tensor) -> Tensor:
    """x [B, C, ...] + inverse sin^2(alpha x), in float32 inside."""
    y = x.float()
    return (y + _wide(inverse, x) * (_wide(alpha, x) * y).sin().square()).to(x.dtype)


def snake_out(x: Tensor, alpha: Tensor, inverse: Tensor, out: Tensor) -> None:
    """`snake` written to `out`, which may be x."""
    out.copy_(snake(x, alpha, inverse))


def snake_backward(grad: Tensor, x: Tensor, alpha: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients float32 of x [B, C, ...], alpha [C] and inverse [C]."""
    grad, x = grad.float(), x.float()
    wave = _wide(alpha, x) * x
    twice, square = (2 * wave).sin(), wave.sin().square()
    others = [axis for axis in range(x.dim()) if axis != 1]
    d_alpha, d_inverse = (grad * x * twice).sum(others) * inverse, (grad * square).sum(others)
    return grad * (1 + _wide(alpha * inverse, x) * twice), d_alpha, d_inverse


def elu(x: Tensor) -> Tensor:
    """max(x, e^min(x, 0) - 1)."""
    return torch.nn.functional.elu(x)


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """[C] -> [C, 1, ...] beside x [B, C, ...]."""
    return values.float().view(-1, *[1] * (x.dim() - 2))
