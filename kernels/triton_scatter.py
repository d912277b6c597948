"""Triton: sums of rows by code, and the gather that adds codes' vectors to rows.

Legend: N vectors, D dimensions, V codes, Q depths. Sums run over rows sorted by code, in row order: no atomics, so two
runs agree to the last bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sums_kernel(x, row_stride, column_stride, order, offsets, sums, D, BLOCK_D: tl.constexpr):
    """One program per code and block of dimensions: adds rows order[offsets[v]] .. order[offsets[v + 1] - 1]."""
    code = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for i in range(tl.load(offsets + code), tl.load(offsets + code + 1)):
        row = tl.load(order + i)
        total += tl.load(x + row * row_stride + d * column_stride, d < D, 0.0).to(tl.float32)
    tl.store(sums + code * D + d, total, d < D)


@triton.jit
def gather_kernel(out, codes, books, alpha, V, D, Q: tl.constexpr, BLOCK_D: tl.constexpr):
    """One program per row and block of dimensions."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.load(out + row * D + d, d < D, 0.0)
    for q in range(Q):
        code = tl.load(codes + row * Q + q) + tl.cast(q, tl.int64) * V
        total += alpha * tl.load(books + code * D + d, d < D, 0.0).to(tl.float32)
    tl.store(out + row * D + d, total, d < D)
