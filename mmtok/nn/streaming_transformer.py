"""Causal transformer over a window of the past, for whole signals and for streams.

Legend: B batch, C channels, T frames, H heads, W window.

Source: the transformers inside Mimi (arXiv 2410.00037, section 3.3.1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.stream import Causal, Stream
from mmtok.nn.window_attention import rotary_angles, rotate_halves

BLOCK = 1024  # frames that attend at once: a long file needs no T x T mask


class StreamingTransformer(Causal):
    """x [B, C, T] -> [B, C, T]. Frame t sees frames t - window + 1 to t.

    heads   H; rotary positions, halves of a head's channels paired
    window  W in frames
    hidden  width inside the MLP
    scale   start of the factors on both residual branches
    """

    def __init__(
        self, channels: int, layers: int, heads: int, hidden: int, window: int, scale: float = 0.01,
        base: float = 10000.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            StreamingLayer(channels, heads, hidden, window, scale, base) for _ in range(layers)
        )

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole signal, or the next piece of one."""
        if stream is None:
            stream = Stream()
        parts = [self._block(part, stream) for part in x.split(BLOCK, -1)]
        return torch.cat(parts, -1)

    def _block(self, x: Tensor, stream: Stream) -> Tensor:
        if not x.shape[-1]:
            return x
        x = x.transpose(1, 2)
        for layer in self.layers:
            x = layer(x, stream)
        return x.transpose(1, 2)


class StreamingLayer(nn.Module):
    """x + a * attention(norm(x)), then x + b * mlp(norm(x)); no biases but in the norms, exact GELU."""

    def __init__(self, channels: int, heads: int, hidden: int, window: int, scale: float, base: float) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"transformer: width {channels} is not divisible by {heads} heads")
        self.heads, self.window, self.base = heads, window, base
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)
        self.scale1 = nn.Parameter(torch.full((channels,), scale))
        self.norm2 = nn.LayerNorm(channels)
        self.up = nn.Linear(channels, hidden, bias=False)
        self.down = nn.Linear(hidden, channels, bias=False)
        self.scale2 = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """[B, T, C] -> [B, T, C]; keys and values of the last W - 1 frames stay in the stream."""
        x = x + self.scale1 * self._attend(self.norm1(x), stream)
        return x + self.scale2 * self.down(F.gelu(self.up(self.norm2(x))))

    def _attend(self, x: Tensor, stream: Stream) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        past_k, past_v, start = stream.memory.get(self, (k[:, :, :0], v[:, :, :0], 0))
        frames = x.shape[1]
        positions = torch.arange(start, start + frames, device=x.device)
        angles = rotary_angles(positions, q.shape[-1], self.base)
        q, k = rotate_halves(q, angles), rotate_halves(k, angles)
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        keys = torch.arange(start + frames - k.shape[2], start + frames, device=x.device)
        behind = positions[:, None] - keys
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(behind >= 0) & (behind < self.window))
        kept = min(self.window - 1, k.shape[2])
        first = k.shape[2] - kept
        stream.memory[self] = (k[:, :, first:], v[:, :, first:], start + frames)
        return self.out(y.transpose(1, 2).flatten(2))
