"""Transformer blocks, pre-norm.

Legend: B batch, L sequence, D width, H heads.

Masks are bool, true where a query may look, broadcastable to [B, H, L, L]; `key_mask` builds one from the
positions that exist.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmtok.kernels.attention import attention


def key_mask(valid: Tensor) -> Tensor:
    """bool [B, 1, 1, L] attention mask from bool [B, L]: nobody looks at positions that are not valid."""
    return valid[:, None, None, :]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Attention [..., L, E] over time, with the same numbers however many queries and keys come at once.

    On a CPU float32 is summed in double precision: how torch orders these sums depends on the number of rows (a lone
    query is a product of matrix and vector), and the next layers make such differences of a stream to the whole
    visible. Next to the layers around it, attention over few frames costs little. mask: bool or float, [..., L, keys].
    """
    if q.is_cpu and q.dtype == torch.float32:
        mask = mask if mask.dtype == torch.bool else mask.double()
        y = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask, scale=scale)
        return y.float()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values (in this order).

    dim    D, divisible by heads
    heads  H
    bias   of both projections
    """

    def __init__(self, dim: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention: width {dim} is not divisible by {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]; mask bool, broadcastable to [B, H, L, L]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = attention(q, k, v) if mask is None else F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.down(F.gelu(self.up(x)))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); LayerNorm with eps 1e-5 (open_clip's block)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio), bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A stack of blocks.

    gradient_checkpointing  recompute each block in the backward pass instead of keeping its activations
    """

    def __init__(
        self, dim: int, layers: int, heads: int, mlp_ratio: float = 4.0, bias: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, mlp_ratio, bias) for _ in range(layers))
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        for block in self.blocks:
            if self.gradient_checkpointing and self.training and x.requires_grad:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x


def init_vit(module: nn.Module) -> None:
    """For `apply`: linear and convolution weights from a normal of std 0.02 cut at two absolute units, biases 0."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
