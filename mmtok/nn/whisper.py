"""The speech encoder of Whisper (arXiv 2212.04356) with block-causal attention, as GLM-4-Voice (2412.02612) has it.

Legend: B batch, T samples at 16 kHz, M mel bands, N mel frames (one per 10 ms), F frames (one per 20 ms), D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.spectrum import MelSpectrum

RATE, WINDOW, HOP = 16000, 400, 160


class WhisperMel(nn.Module):
    """x [B, 1, T], T a multiple of 160 -> float32 [B, M, T / 160] as Whisper hears: log10 of mel power, no more than 8
    below the clip's maximum, then (v + 4) / 4."""

    def __init__(self, n_mels: int = 128) -> None:
        super().__init__()
        self.mel = MelSpectrum(RATE, WINDOW, HOP, n_mels, power=2.0, scale="slaney", area=True)

    def forward(self, x: Tensor) -> Tensor:
        found = self.mel(x)[:, 0, :, :-1].clamp(min=1e-10).log10()  # the frame centred on the end is not used
        return (torch.maximum(found, found.amax((1, 2), keepdim=True) - 8) + 4) / 4


class WhisperEncoder(nn.Module):
    """mel [B, M, N], N even -> [B, F, D], F = N / 2 <= positions.

    positions  length of the learned position table
    block      frames that see each other and everything before them; None: everything sees everything, as in Whisper
    causal     the two convolutions look back only, as in GLM-4-Voice; Whisper's look one frame ahead
    """

    def __init__(
        self, n_mels: int = 128, dim: int = 1280, layers: int = 16, heads: int = 20, hidden: int = 5120,
        positions: int = 1500, block: int | None = 200, causal: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.block, self.pad = dim, block, (2, 0) if causal else (1, 1)
        self.conv1 = nn.Conv1d(n_mels, dim, 3)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2)
        self.positions = nn.Parameter(torch.randn(positions, dim) * 0.02)
        self.layers = nn.ModuleList(WhisperLayer(dim, heads, hidden) for _ in range(layers))

    def forward(self, mel: Tensor, frames: Tensor | None = None) -> Tensor:
        """frames: int64 [B], how many of the F frames are no padding; None: all."""
        x = self.convolve(mel).transpose(1, 2)
        if x.shape[1] > len(self.positions):
            raise ValueError(f"whisper: {x.shape[1]} frames, the position table has {len(self.positions)}")
        x = x + self.positions[: x.shape[1]]
        mask = self.mask(x.shape[1], frames, x.device)
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def convolve(self, mel: Tensor) -> Tensor:
        """[B, M, N] -> [B, D, F], before positions."""
        x = F.gelu(self.conv1(F.pad(mel, self.pad)))
        return F.gelu(self.conv2(F.pad(x, self.pad)))

    def mask(self, count: int, frames: Tensor | None, device: torch.device) -> Tensor | None:
        """bool [B or 1, 1, F, F]: which frame sees which; None when all see all."""
        at = torch.arange(count, device=device)
        seen = None
        if self.block is not None:
            seen = (at < (at // self.block + 1)[:, None] * self.block)[None]
        if frames is not None:
            # a clip that ended before sees what there is: a softmax over nothing is no number
            inside = (at < frames.to(device)[:, None].clamp(min=1))[:, None].expand(-1, count, -1)
            seen = inside if seen is None else seen & inside
        return None if seen is None else seen[:, None]


class WhisperLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); exact GELU, keys without bias."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"whisper: width {dim} is not divisible by {heads} heads")
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, F, D] -> [B, F, D]."""
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))
