"""Attention of every query over every key on a CPU with vectors of 256 bits or more, registered with torch.

Legend: B batch, H heads, L queries, K keys, D dimensions of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.kernels import dispatch, native

WORTH_IT = 1 << 15  # scores of a head: with fewer, torch's is as fast


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v [B, H, L, D] for q [B, H, L, D], k and v [B, H, K, D]; scale is 1 / sqrt(D) by default.

    float32 to its rounding; bfloat16 with float32 sums. Where gradients are asked for, on other devices and processors,
    in other types and for few scores it is torch's `scaled_dot_product_attention`.
    """
    if not _serves(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    return torch.ops.mmtok.attention(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)


def _serves(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if torch.compiler.is_compiling() or q.device.type != "cpu" or q.dtype not in native.DTYPES:
        return False
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return False
    if q.dim() != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        return False
    if not q.dtype == k.dtype == v.dtype or q.shape[2] * k.shape[2] < WORTH_IT:
        return False
    return dispatch.cpu_path()[0] in ("avx512bf16", "avx512", "avx2")


def _run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    module = dispatch.cpu()
    if module is native:
        return native.attention(q, k, v, scale)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


LIBRARY = torch.library.Library("mmtok", "FRAGMENT")
LIBRARY.define("attention(Tensor q, Tensor k, Tensor v, float scale) -> Tensor")
LIBRARY.impl("attention", _run, "CPU")


@torch.library.register_fake("mmtok::attention", lib=LIBRARY)
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return torch.empty_like(q.transpose(1, 2).contiguous()).transpose(1, 2)
