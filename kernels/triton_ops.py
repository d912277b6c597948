"""The operators on CUDA: launches of the Triton kernels, with the same meaning as `reference.py`.

Legend: N vectors, D dimensions, V codes, Q depths.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mmtok.kernels.triton_scatter import gather_kernel, sums_kernel
from mmtok.kernels.triton_search import residual_kernel, residual_tile, search

WIDEST_RESIDUAL = 128  # dimensions of a residual that still fit a program's registers


def nearest_code(x: Tensor, codebook: Tensor, k: int) -> tuple[Tensor, Tensor]:
    codebook = codebook.contiguous()
    centre = codebook.mean(0, dtype=torch.float32)
    codes, scores, distance = search(x, codebook, centre, None)
    if k == 1:
        return codes[:, None], distance[:, None]
    found, distances = [codes], [distance]
    for _ in range(k - 1):  # each pass finds the next nearest: k walks over the codebook, no N x V block
        codes, scores, distance = search(x, codebook, centre, (codes, scores))
        found.append(codes)
        distances.append(distance)
    all_codes, all_distances = torch.stack(found, 1), torch.stack(distances, 1)
    order = all_codes.argsort(dim=1, stable=True)
    order = order.gather(1, all_distances.gather(1, order).argsort(dim=1, stable=True))
    return all_codes.gather(1, order), all_distances.gather(1, order)


def residual_encode(x: Tensor, codebooks: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor]:
    codebooks = codebooks.contiguous()
    (count, dim), quantizers, size = x.shape, codebooks.shape[0], codebooks.shape[1]
    codes = torch.zeros(count, quantizers, dtype=torch.int64, device=x.device)
    total = torch.zeros(count, dim, device=x.device)
    if not count or not quantizers:
        return codes, total
    if dim > WIDEST_RESIDUAL:
        return _by_depth(x, codebooks, depth, codes, total)
    tile = residual_tile(dim)
    residual_kernel[(triton.cdiv(count, tile.rows),)](
        x, x.stride(0), x.stride(1), codebooks, codebooks.mean(1, dtype=torch.float32),
        codes if depth is None else depth.contiguous(), codes, total, count, size, D=dim, Q=quantizers,
        HAS_DEPTH=depth is not None, BLOCK_N=tile.rows, BLOCK_V=tile.codes,
        BLOCK_D=tile.dims, num_warps=tile.warps, num_stages=tile.stages,
    )
    return codes, total


def gather_add_(out: Tensor, codes: Tensor, codebooks: Tensor, alpha: float) -> None:
    size, dim = codebooks.shape[1:]
    # asynchronous, as torch's own gathers are: raising here would make every call wait for the device
    torch._assert_async(((codes >= 0) & (codes < size)).all(), "mmtok.kernels: a code lies outside its codebook")
    target = out.contiguous()
    if target.numel():
        block = min(1024, triton.next_power_of_2(dim))
        gather_kernel[(target.shape[0], triton.cdiv(dim, block))](
            target, codes.contiguous(), codebooks.contiguous(), alpha, size, dim, Q=codes.shape[1], BLOCK_D=block,
        )
    if target is not out:
        out.copy_(target)


def code_sums(x: Tensor, codes: Tensor, size: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if mask is not None:
        codes = torch.where(mask, codes, size)  # sorts behind every code; no wait for the number of rows kept
    order = codes.argsort(stable=True)
    offsets = torch.searchsorted(codes[order], torch.arange(size + 1, device=x.device))
    sums = torch.empty(size, x.shape[1], device=x.device)
    if sums.numel():
        block = min(1024, triton.next_power_of_2(x.shape[1]))
        sums_kernel[(size, triton.cdiv(x.shape[1], block))](
            x, x.stride(0), x.stride(1), order, offsets, sums, x.shape[1], BLOCK_D=block,
        )
    return offsets.diff().float(), sums


def _by_depth(x: Tensor, codebooks: Tensor, depth: Tensor | None, codes: Tensor, total: Tensor) \
        -> tuple[Tensor, Tensor]:
    """Wide vectors: one search a depth, the residual in memory between them."""
    residual = x.to(torch.float32, copy=True)
    for q, book in enumerate(codebooks):
        chosen = nearest_code(residual, book, 1)[0][:, 0]
        picked = book[chosen].float()
        if depth is not None:
            chosen, picked = chosen * (depth > q), picked * (depth > q)[:, None]
        codes[:, q] = chosen
        residual -= picked
        total += picked
    return codes, total
