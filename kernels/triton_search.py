"""Triton: nearest code with distance and arg-min fused, and the residual search over all depths.

Legend: N vectors, D dimensions, V codes, Q depths. A program takes BLOCK_N rows and walks the codebook BLOCK_V codes at
a time; nothing of size N x V exists. Scores |c|^2 / 2 - x.c are taken after centring by the codebook mean, in true
float32 (no TF32: it would misplace codes), and the lowest index wins a tie.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """How one program is cut."""

    rows: int
    codes: int
    dims: int
    warps: int
    stages: int = 2  # more would not fit the shared memory of smaller GPUs (100 KB)


# One default per shape class. Unmeasured: no GPU has run `python -m mmtok.kernels.bench` yet, which tries
# CANDIDATES on every shape and prints the fastest.
DEFAULTS = {"narrow": Tile(64, 128, 32, 4), "middle": Tile(64, 64, 64, 4), "wide": Tile(64, 64, 64, 4)}
CANDIDATES = tuple(
    Tile(rows, codes, dims, warps) for rows in (32, 64, 128) for codes in (64, 128) for dims in (32, 64)
    for warps in (4, 8)
)


def shape_class(dim: int) -> str:
    """narrow (D <= 32), middle (D <= 128) or wide."""
    return "narrow" if dim <= 32 else "middle" if dim <= 128 else "wide"


def default_tile(dim: int) -> Tile:
    """The default of the shape class, no wider than D needs (a product needs 16 dimensions at least)."""
    tile = DEFAULTS[shape_class(dim)]
    return replace(tile, dims=min(tile.dims, max(16, triton.next_power_of_2(dim))))


def residual_tile(dim: int) -> Tile:
    """A residual stays whole in registers: every dimension at once, so fewer rows and codes."""
    dims = max(16, triton.next_power_of_2(dim))
    return Tile(64, 128, dims, 4) if dims <= 32 else Tile(32, 32, dims, 4)


@triton.jit
def _scores(
    x, row_stride, column_stride, rows, row_ok, book, centre, first, V, D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):
    columns = first + tl.arange(0, BLOCK_V)
    column_ok = columns < V
    product = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    half = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        middle = tl.load(centre + d, d < D, 0.0)
        a = tl.load(x + rows[:, None] * row_stride + d[None, :] * column_stride,
                    row_ok[:, None] & (d < D)[None, :], 0.0).to(tl.float32)
        b = tl.load(book + columns[:, None].to(tl.int64) * D + d[None, :],
                    column_ok[:, None] & (d < D)[None, :], 0.0).to(tl.float32)
        a = tl.where((d < D)[None, :], a - middle[None, :], 0.0)
        b = tl.where((d < D)[None, :], b - middle[None, :], 0.0)
        product += tl.dot(a, tl.trans(b), input_precision="ieee")
        half += tl.sum(b * b, 1)
    return tl.where(column_ok[None, :], half[None, :] * 0.5 - product, float("inf")), columns


@triton.jit
def nearest_kernel(
    x, row_stride, column_stride, book, centre, codes, scores, distances, previous_code, previous_score, N, V,
    D: tl.constexpr, AFTER: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    row_ok = rows < N
    best = tl.full([BLOCK_N], float("inf"), tl.float32)
    chosen = tl.zeros([BLOCK_N], tl.int32)
    for first in range(0, V, BLOCK_V):
        score, columns = _scores(x, row_stride, column_stride, rows, row_ok, book, centre, first, V, D,
                                 BLOCK_N, BLOCK_V, BLOCK_D)
        if AFTER:  # only codes that follow the one found by the pass before
            score_before = tl.load(previous_score + rows, row_ok, 0.0)[:, None]
            code_before = tl.load(previous_code + rows, row_ok, 0)[:, None]
            follows = (score > score_before) | ((score == score_before) & (columns[None, :] > code_before))
            score = tl.where(follows, score, float("inf"))
        low, at = tl.min(score, 1, return_indices=True)
        better = low < best
        best = tl.where(better, low, best)
        chosen = tl.where(better, first + at, chosen)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        ok = row_ok[:, None] & (d < D)[None, :]
        a = tl.load(x + rows[:, None] * row_stride + d[None, :] * column_stride, ok, 0.0).to(tl.float32)
        b = tl.load(book + chosen[:, None].to(tl.int64) * D + d[None, :], ok, 0.0).to(tl.float32)
        total += tl.sum((a - b) * (a - b), 1)
    tl.store(codes + rows, chosen.to(tl.int64), row_ok)
    tl.store(scores + rows, best, row_ok)
    tl.store(distances + rows, total, row_ok)


@triton.jit
def residual_kernel(
    x, row_stride, column_stride, books, centres, depth, codes, total, N, V, D: tl.constexpr, Q: tl.constexpr,
    HAS_DEPTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    row_ok = rows < N
    d = tl.arange(0, BLOCK_D)
    d_ok = d < D
    tile_ok = row_ok[:, None] & d_ok[None, :]
    left = tl.load(x + rows[:, None] * row_stride + d[None, :] * column_stride, tile_ok, 0.0).to(tl.float32)
    summed = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for q in range(Q):
        book = books + tl.cast(q, tl.int64) * V * D
        middle = tl.load(centres + q * D + d, d_ok, 0.0)
        a = tl.where(d_ok[None, :], left - middle[None, :], 0.0)
        best = tl.full([BLOCK_N], float("inf"), tl.float32)
        chosen = tl.zeros([BLOCK_N], tl.int32)
        for first in range(0, V, BLOCK_V):
            columns = first + tl.arange(0, BLOCK_V)
            ok = (columns < V)[:, None] & d_ok[None, :]
            b = tl.load(book + columns[:, None].to(tl.int64) * D + d[None, :], ok, 0.0).to(tl.float32)
            b = tl.where(d_ok[None, :], b - middle[None, :], 0.0)
            score = tl.sum(b * b, 1)[None, :] * 0.5 - tl.dot(a, tl.trans(b), input_precision="ieee")
            low, at = tl.min(tl.where((columns < V)[None, :], score, float("inf")), 1, return_indices=True)
            better = low < best
            best = tl.where(better, low, best)
            chosen = tl.where(better, first + at, chosen)
        used = row_ok
        if HAS_DEPTH:
            used = row_ok & (tl.load(depth + rows, row_ok, 0) > q)
        picked = tl.load(book + chosen[:, None].to(tl.int64) * D + d[None, :], used[:, None] & d_ok[None, :], 0.0)
        left -= picked.to(tl.float32)
        summed += picked.to(tl.float32)
        tl.store(codes + rows * Q + q, tl.where(used, chosen, 0).to(tl.int64), row_ok)
    tl.store(total + rows[:, None] * D + d[None, :], summed, tile_ok)


def search(x: Tensor, book: Tensor, centre: Tensor, before: tuple[Tensor, Tensor] | None, tile: Tile | None = None) \
        -> tuple[Tensor, Tensor, Tensor]:
    """(codes int64 [N], scores [N], squared distances [N]): the nearest, or the next after `before` (codes, scores)."""
    tile = tile or default_tile(book.shape[1])
    codes = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    scores = torch.empty(x.shape[0], device=x.device)
    distances = torch.empty_like(scores)
    if x.shape[0]:
        nearest_kernel[(triton.cdiv(x.shape[0], tile.rows),)](
            x, x.stride(0), x.stride(1), book, centre, codes, scores, distances, *(before or (codes, scores)),
            x.shape[0], book.shape[0], D=book.shape[1], AFTER=before is not None, BLOCK_N=tile.rows,
            BLOCK_V=tile.codes, BLOCK_D=tile.dims, num_warps=tile.warps, num_stages=tile.stages,
        )
    return codes, scores, distances
