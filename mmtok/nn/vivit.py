"""Transformers factorised over space and time: spatial attention per frame, causal attention per place.

Legend: B batch, t frames of tokens, h w tokens of a frame, D width, H heads, E width of a head, W window.

x is [B, t, h, w, D] throughout. Sources: C-ViViT (Phenaki, arXiv 2210.02399, as built by phenaki-pytorch) and
OmniTokenizer (arXiv 2406.09399), which took its layers from there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmtok.nn.attention import attend
from mmtok.nn.position_bias import ContinuousBias, WindowBias, alibi_slopes
from mmtok.nn.stream import Causal, Stream

LOGIT_SCALE = 8.0  # of cosine attention, beside learned scales of queries and keys


class SpatialTransformer(Causal):
    """Layers inside frames, except that their position convolutions look back in time.

    kinds            a letter a layer: "t" full attention over a frame, "w" inside windows
    conv, rope       "t" layers have a position convolution, rotary positions of rows and columns (OmniTokenizer)
    bias             one learned bias by distance, shared by all layers (C-ViViT)
    window           side of the windows of "w" layers
    """

    def __init__(
        self, dim: int, kinds: str, heads: int, head: int, conv: bool = True, rope: bool = True, bias: bool = False,
        window: int = 8, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if set(kinds) - set("tw"):
            raise ValueError(f"transformer.kinds: letters t (full) and w (windows), got {kinds!r}")
        self.layers = nn.ModuleList(
            VivitLayer(
                dim, WindowAttention2d(dim, heads, window) if kind == "w" else CosineAttention(dim, heads, head),
                PositionConv(dim) if conv and kind == "t" else None,
            )
            for kind in kinds
        )
        self.norm = GammaNorm(dim)
        self.rope = rope
        self.bias = ContinuousBias(dim, heads) if bias else None
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, t, h, w, D] -> the same."""
        batch, _, high, wide, _ = x.shape
        bias = None if self.bias is None else self.bias((high, wide))
        for layer in self.layers:
            x = _step(layer, x, stream, self.gradient_checkpointing, spatial=True, bias=bias, rope=self.rope)
        return self.norm(x)


class TemporalTransformer(Causal):
    """Causal layers over the tokens at the same place of all frames.

    alibi           a bias that falls with the distance in time, by another slope a head (C-ViViT)
    window          W, frames of tokens a frame sees, itself included; None: all of the past
    legacy_reshape  the position convolutions read the tokens through a reshape that mixes time and space, as the
                    published weights need: the future leaks, and no stream is possible
    """

    def __init__(
        self, dim: int, layers: int, heads: int, head: int, alibi: bool = False, window: int | None = None,
        legacy_reshape: bool = False, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"transformer.window: at least one frame of tokens, got {window}")
        self.layers = nn.ModuleList(
            VivitLayer(dim, CosineAttention(dim, heads, head, window), PositionConv(dim, legacy_reshape))
            for _ in range(layers)
        )
        self.norm = GammaNorm(dim)
        self.register_buffer("slopes", alibi_slopes(heads) if alibi else None, persistent=False)
        self.gradient_checkpointing = gradient_checkpointing

    slopes: Tensor | None

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, t, h, w, D] -> the same."""
        for layer in self.layers:
            x = _step(layer, x, stream, self.gradient_checkpointing, spatial=False, bias=self.slopes, rope=False)
        return self.norm(x)


class VivitLayer(nn.Module):
    """x + conv(x), x + attention(x), x + mlp(x); norms stand inside."""

    def __init__(self, dim: int, attention: nn.Module, conv: nn.Module | None) -> None:
        super().__init__()
        self.conv = conv
        self.attention = attention
        self.mlp = GegluMLP(dim)

    def forward(self, x: Tensor, stream: Stream | None, spatial: bool, bias: Tensor | None, rope: bool) -> Tensor:
        """[B, t, h, w, D] -> the same."""
        batch, frames, high, wide, _ = x.shape
        if self.conv is not None:
            x = x + self.conv(x, spatial, stream)
        if isinstance(self.attention, WindowAttention2d):
            x = x + self.attention(x)
        elif spatial:
            y = x.flatten(0, 1).flatten(1, 2)
            y = self.attention(y, bias, (high, wide) if rope else None)
            x = x + y.unflatten(1, (high, wide)).unflatten(0, (batch, frames))
        else:
            y = x.permute(0, 2, 3, 1, 4).flatten(0, 2)
            y = self.attention.causal(y, bias, stream)  # type: ignore[union-attr, operator]
            x = x + y.unflatten(0, (batch, high, wide)).permute(0, 3, 1, 2, 4)
        return x + self.mlp(x)


class CosineAttention(nn.Module):
    """Attention of unit queries and keys with learned scales; keys and values see x before its norm, as published."""

    def __init__(self, dim: int, heads: int, head: int, window: int | None = None) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = GammaNorm(dim)
        self.q = nn.Linear(dim, heads * head, bias=False)
        self.kv = nn.Linear(dim, 2 * heads * head, bias=False)
        self.q_scale = nn.Parameter(torch.ones(head))
        self.k_scale = nn.Parameter(torch.ones(head))
        self.out = nn.Linear(heads * head, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None, grid: tuple[int, int] | None) -> Tensor:
        """x [R, h w, D]; bias [H, h w, h w]; grid (h, w) turns queries and keys by row and column."""
        q, k, v = self._parts(x)
        if grid is not None:
            angles = grid_angles(grid, q.shape[-1], x.device)
            q, k = rotate_pairs(q, angles), rotate_pairs(k, angles)
        q, k = self._unit(q, self.q_scale), self._unit(k, self.k_scale)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=LOGIT_SCALE)
        return self.out(y.transpose(1, 2).flatten(2))

    def causal(self, x: Tensor, slopes: Tensor | None, stream: Stream | None) -> Tensor:
        """x [R, t, D]; slopes [H] of the bias by distance. A stream keeps keys and values of W - 1 frames."""
        q, k, v = self._parts(x)
        q, k = self._unit(q, self.q_scale), self._unit(k, self.k_scale)
        before = 0
        if stream is not None:
            old_k, old_v = stream.memory.get(self, (k[:, :, :0], v[:, :, :0]))
            before = old_k.shape[2]
            k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
            first = 0 if self.window is None else max(0, k.shape[2] - self.window + 1)
            stream.memory[self] = (k[:, :, first:].clone(), v[:, :, first:].clone())
        places = torch.arange(k.shape[2], device=x.device)
        behind = places[before:, None] - places
        seen = behind >= 0 if self.window is None else (behind >= 0) & (behind < self.window)
        mask = torch.zeros(seen.shape, device=x.device, dtype=q.dtype).masked_fill(~seen, -torch.inf)
        if slopes is not None:
            mask = mask - slopes.to(q.dtype)[:, None, None] * behind.abs()
        return self.out(attend(q, k, v, mask, LOGIT_SCALE).transpose(1, 2).flatten(2))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    @staticmethod
    def _unit(x: Tensor, scale: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * scale


class WindowAttention2d(nn.Module):
    """Attention inside W x W windows of a frame that do not overlap, with a learned bias by distance (Swin)."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention: width {dim} is not divisible by {heads} heads")
        self.heads, self.window = heads, window
        self.norm = GammaNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.bias = WindowBias(heads, window)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, t, h, w, D] -> the same; frames that windows do not fill are padded, and nobody looks there."""
        _, _, high, wide, _ = x.shape
        y = self.norm(x).flatten(0, 1)
        down, right = -high % self.window, -wide % self.window
        bias = self.bias()[None]
        if down or right:
            y = F.pad(y, (0, 0, 0, right, 0, down))
            real = F.pad(y.new_ones(1, high, wide, 1), (0, 0, 0, right, 0, down))
            hidden = self._windows(real)[:, :, 0] == 0  # [windows, W W]
            hidden = hidden & ~hidden.all(1, keepdim=True)
            bias = bias.masked_fill(hidden[:, None, None], -torch.inf).repeat(y.shape[0], 1, 1, 1)
        parts = self._windows(y)
        q, k, v = self.qkv(parts).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        z = self.out(z.transpose(1, 2).flatten(2)).unflatten(1, (self.window, self.window))
        rows, columns = (high + down) // self.window, (wide + right) // self.window
        z = z.unflatten(0, (-1, rows, columns)).permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
        return z[:, :high, :wide].unflatten(0, x.shape[:2])

    def _windows(self, x: Tensor) -> Tensor:
        """[R, h, w, D] -> [R * windows, W W, D]."""
        x = x.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window))
        return x.permute(0, 1, 3, 2, 4, 5).flatten(0, 2).flatten(1, 2)


class PositionConv(nn.Module):
    """Depthwise 3x3x3 convolution over (t, h, w), zeros around it, in time only in front (PEG, arXiv 2102.10882)."""

    def __init__(self, dim: int, legacy_reshape: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv3d(dim, dim, 3, padding=(0, 1, 1), groups=dim)
        self.legacy_reshape = legacy_reshape

    def forward(self, x: Tensor, spatial: bool, stream: Stream | None) -> Tensor:
        """[B, t, h, w, D] -> the same; a stream keeps the last two frames."""
        if self.legacy_reshape and not spatial:
            if stream is not None:
                raise ValueError("legacy_reshape mixes time and space: these weights cannot stream")
            mixed = x.permute(0, 2, 3, 1, 4).reshape(x.shape)
            y = self._run(F.pad(mixed.movedim(-1, 1), (0, 0, 0, 0, 2, 0)))
            shape = (x.shape[0], x.shape[2], x.shape[3], x.shape[1], x.shape[4])
            return y.reshape(shape).permute(0, 3, 1, 2, 4)
        y = x.movedim(-1, 1)
        past = y.new_zeros(*y.shape[:2], 2, *y.shape[3:])
        if stream is not None:
            past = stream.memory.get(self, past)
        y = torch.cat([past, y], 2)
        if stream is not None:
            stream.memory[self] = y[:, :, -2:].clone()
        return self._run(y)

    def _run(self, y: Tensor) -> Tensor:
        return self.conv(y).movedim(1, -1)


class GegluMLP(nn.Module):
    """Norm, linear, gelu(gate) * value, linear; no biases. The inner width is 8/3 of D."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = int(4 * 2 / 3 * dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        value, gate = self.up(self.norm(x)).chunk(2, -1)
        return self.down(F.gelu(gate) * value)


class GammaNorm(nn.Module):
    """LayerNorm that learns a scale; its offset is a constant, zero unless published weights say otherwise."""

    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


def grid_angles(grid: tuple[int, int], head: int, device: torch.device, base: float = 10000.0) -> Tensor:
    """float32 [h w, E / 2]: angles by column and row in turn, channel pair after channel pair."""
    rates = base ** (-torch.arange(0, head, 4, device=device, dtype=torch.float32)[: head // 4] / head)
    rows, columns = torch.meshgrid(*(torch.arange(n, device=device).float() for n in grid), indexing="ij")
    pair = torch.stack([columns.flatten()[:, None] * rates, rows.flatten()[:, None] * rates], -1)
    return pair.flatten(1)


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates channel 2i with channel 2i + 1; x [..., L, E], angles [L, E / 2]."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def _step(
    layer: nn.Module, x: Tensor, stream: Stream | None, recompute: bool, spatial: bool, bias: Tensor | None, rope: bool
) -> Tensor:
    if recompute and layer.training and x.requires_grad and stream is None:
        return checkpoint(layer, x, None, spatial, bias, rope, use_reentrant=False)
    return layer(x, stream, spatial, bias, rope)
