"""Blocks of LaVIT's tokenizer (arXiv 2309.04669): selector, merger, decoder of features.

Legend: B batch, N patches, n kept codes (padded), W width, H heads, D code dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.attention import MLP, Attention, init_vit

EPS = 1e-6  # of the attention that is limited by choices


class Selector(nn.Module):
    """Features [B, N, W] -> log-probabilities [B, N, 2] of keeping and of dropping a patch.

    Half of the channels is replaced by its mean over the patches, so that a patch knows the image.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.read = nn.LayerNorm(width), nn.Linear(width, width)
        self.judge = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU(),
            nn.Linear(width // 4, 2),
        )
        self.apply(init_vit)

    def forward(self, x: Tensor) -> Tensor:
        own, shared = F.gelu(self.read(self.norm(x))).chunk(2, -1)
        return self.judge(torch.cat([own, shared.mean(1, keepdim=True).expand_as(shared)], -1)).log_softmax(-1)


class Merger(nn.Module):
    """Features [B, N, W], choices [B, N] -> [B, N, W]: kept patches see kept ones before them, then the dropped."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(MergerBlock(width, heads, int(width * mlp_ratio)) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)
        self.apply(init_vit)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        raw = self.norm_in(x)
        for block in self.blocks:
            x = block(x, raw, chosen)
        return self.norm_out(x)


class MergerBlock(nn.Module):
    """Causal attention among kept patches, cross-attention to dropped ones, MLP; norms before."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm0, self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.cross = CrossAttention(width, heads)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor, raw: Tensor, chosen: Tensor) -> Tensor:
        count = x.shape[1]
        q, k, v = self.attention.qkv(self.norm0(x)).unflatten(-1, (3, self.attention.heads, -1)).permute(2, 0, 3, 1, 4)
        eye = torch.eye(count, device=x.device, dtype=chosen.dtype)
        kept = chosen[:, None, None]
        allowed = (kept + (1 - kept) * eye) * torch.ones_like(eye).tril()
        y = limited_attention(q, k, v, allowed)
        x = x + self.attention.out(y.transpose(1, 2).flatten(2))
        y = self.norm1(x)
        q, k, v = self.cross.parts(y, raw)
        y = limited_attention(q, k, v, 1 - kept)
        x = x + self.cross.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class CrossAttention(nn.Module):
    """Queries of one sequence, keys and values of another (of width `context`, the same when None)."""

    def __init__(self, width: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(context or width, width), nn.Linear(context or width, width)
        self.out = nn.Linear(width, width)

    def parts(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, N, W / H], and keys and values of `context`."""
        parts = (self.query(x), self.key(context), self.value(context))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return q, k, v

    def forward(self, x: Tensor, context: Tensor, seen: Tensor | None = None) -> Tensor:
        """x [B, L, W], context [B, M, C], seen bool [B, M] -> [B, L, W]."""
        mask = None if seen is None else seen[:, None, None]
        y = F.scaled_dot_product_attention(*self.parts(x, context), attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class FeatureDecoder(nn.Module):
    """Kept codes -> features of all patches, and prompts for a diffusion model.

    dim     D; width, layers, heads, mlp_ratio: of the transformer
    places  N: queries, and positions of codes by rank
    prompt  widths of the prompts; with two, the second is also the width of the pooled vector
    """

    def __init__(
        self, dim: int = 32, places: int = 256, width: int = 1408, layers: int = 12, heads: int = 16,
        mlp_ratio: float = 4.3637, prompt: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if len(prompt) > 2:
            raise ValueError(f"decoder.prompt: at most two widths, got {prompt}")
        self.dim = dim
        self.embed = nn.Linear(dim, width)
        self.positions = nn.Parameter(torch.randn(places, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(places, width) * 0.02)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, int(width * mlp_ratio)) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.hidden, self.project = nn.Linear(width, width), nn.Linear(width, width)
        self.to_prompt = nn.ModuleList(nn.Linear(width, size) for size in prompt)
        self.pool = AttentionPool(width, places, heads, prompt[1]) if len(prompt) == 2 else None
        self.apply(init_vit)

    def forward(self, z: Tensor, keep: Tensor) -> Tensor:
        """z [B, n, D], keep bool [B, n], a prefix -> features [B, N, W]."""
        return self.project(torch.tanh(self.hidden(self._read(z, keep))))

    def prompts(self, z: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
        """Prompts [B, N, sum of widths], and the pooled vector [B, last width] when there are two widths."""
        if not self.to_prompt:
            raise ValueError("decoder.prompt: this decoder was made without prompts")
        y = self(z, keep)
        out = torch.cat([layer(y) for layer in self.to_prompt], -1)
        return out, None if self.pool is None else self.pool(y)

    def _read(self, z: Tensor, keep: Tensor) -> Tensor:
        length = int(keep.sum(1).amax())
        codes = self.embed(z[:, :length]) + self.positions[:length]
        y = self.queries.expand(len(z), -1, -1)
        for block in self.blocks:
            y = block(y, codes, keep[:, :length])
        return self.norm(y)


class DecoderBlock(nn.Module):
    """Attention, cross-attention to the codes, MLP; norms before."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm0, self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.cross = Attention(width, heads), CrossAttention(width, heads)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor, codes: Tensor, keep: Tensor) -> Tensor:
        x = x + self.attention(self.norm0(x))
        x = x + self.cross(self.norm1(x), codes, keep)
        return x + self.mlp(self.norm2(x))


class AttentionPool(nn.Module):
    """[B, N, W] -> [B, size]: the mean, with a place of its own, asks all (CLIP's ResNets)."""

    def __init__(self, width: int, places: int, heads: int, size: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(places + 1, width) * width**-0.5)
        self.attention = CrossAttention(width, heads)
        self.attention.out = nn.Linear(width, size)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positions
        return self.attention(x[:, :1], x)[:, 0]


def limited_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Attention whose weights are multiplied by `allowed` (0 to 1, with gradients), smoothed so that a row without
    any allowed key takes the mean of all values. float32 [B, H, L, C]."""
    scores = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * allowed
    weights = (weights + EPS / weights.shape[-1]) / (weights.sum(-1, keepdim=True) + EPS)
    return weights.to(v) @ v
