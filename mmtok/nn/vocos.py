"""Vocos: ConvNeXt blocks at frame rate and a Fourier head, as a codec's decoder.

Legend: B batch, D latent channels, C channels, F frames.

Sources: Vocos (arXiv 2306.00814), WavTokenizer (arXiv 2408.16532), which adds the position net.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.conv1d import SameConv1d, TimeGroupNorm
from mmtok.nn.istft import ISTFTHead
from mmtok.nn.stream import Causal, Stream, add_aligned, run


class VocosDecoder(Causal):
    """z [B, D, F] -> x [B, 1, F * hop].

    dim          D
    width        C; hidden: width inside a block; layers: number of blocks
    conditions   rows of the adaptive LayerNorms, chosen by `row` of `forward`; None for plain LayerNorms
    position     the position net of WavTokenizer behind the first convolution: it hears the whole clip
    causal       convolutions look back only; with padding "causal" the decoder streams
    n_fft, hop, padding: see `ISTFTHead`
    """

    channels = 1

    def __init__(
        self, dim: int, width: int = 768, hidden: int = 2304, layers: int = 12, n_fft: int = 1280, hop: int = 320,
        padding: Literal["same", "center", "causal"] = "same", conditions: int | None = None, position: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if position and causal:
            raise ValueError("decoder.position hears the whole clip: it cannot be causal")
        self.dim, self.stride = dim, hop
        self.causal = causal and padding == "causal"
        self.embed = SameConv1d(dim, width, 7, causal=causal, pad_mode="constant", norm="none")
        self.position = PositionNet(width) if position else nn.Identity()
        self.norm = ChannelNorm(width, conditions)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, hidden, 1 / layers, conditions, causal) for _ in range(layers)
        )
        self.final = ChannelNorm(width)
        self.head = ISTFTHead(width, n_fft, hop, padding)

    def forward(self, z: Tensor, stream: Stream | None = None, row: int | Tensor = 0) -> Tensor:
        """A whole signal, or the next piece of one; row is one for all items, or int64 [B]."""
        x = self.features(z, stream, row)
        return self.head(x, stream)

    def features(self, z: Tensor, stream: Stream | None = None, row: int | Tensor = 0) -> Tensor:
        """[B, C, F] before the head."""
        x = self.norm(self.position(run([self.embed], z, stream)), row)
        for block in self.blocks:
            x = block(x, stream, row)
        return self.final(x)


class ConvNeXtBlock(Causal):
    """x + scale * down(gelu(up(norm(depthwise7(x))))) (arXiv 2201.03545)."""

    def __init__(self, width: int, hidden: int, scale: float, conditions: int | None, causal: bool) -> None:
        super().__init__()
        self.depthwise = SameConv1d(width, width, 7, groups=width, causal=causal, pad_mode="constant", norm="none")
        self.norm = ChannelNorm(width, conditions)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, stream: Stream | None = None, row: int | Tensor = 0) -> Tensor:
        """[B, C, F] -> [B, C, F]."""
        y = self.norm(run([self.depthwise], x, stream), row).transpose(1, 2)
        y = (self.scale * self.down(F.gelu(self.up(y)))).transpose(1, 2)
        return add_aligned(self, x, y, stream)


class ChannelNorm(nn.Module):
    """LayerNorm over C of [B, C, F], eps 1e-6; with conditions, scale and shift are one of several rows."""

    def __init__(self, width: int, conditions: int | None = None) -> None:
        super().__init__()
        shape = (width,) if conditions is None else (conditions, width)
        self.scale = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, row: int | Tensor = 0) -> Tensor:
        """[B, C, F] -> [B, C, F]."""
        scale, shift = (p if p.dim() == 1 else p[row] for p in (self.scale, self.shift))
        if scale.dim() == 2:
            scale, shift = scale[:, None], shift[:, None]
        y = F.layer_norm(x.transpose(1, 2), (x.shape[1],), eps=1e-6)
        return (y * scale + shift).transpose(1, 2)


class PositionNet(nn.Module):
    """Two residual blocks, attention over the clip, two residual blocks, GroupNorm (WavTokenizer, section 3.3)."""

    def __init__(self, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            NormedBlock(width, dropout), NormedBlock(width, dropout), ClipAttention(width),
            NormedBlock(width, dropout), NormedBlock(width, dropout), TimeGroupNorm(width, 32, 1e-6),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, F] -> [B, C, F]."""
        return self.layers(x)


class NormedBlock(nn.Module):
    """x + conv3(dropout(swish(norm(conv3(swish(norm(x))))))), GroupNorms of 32 groups."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = TimeGroupNorm(width, 32, 1e-6)
        self.conv1 = nn.Conv1d(width, width, 3, padding=1)
        self.norm2 = TimeGroupNorm(width, 32, 1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, F] -> [B, C, F]."""
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(self.dropout(F.silu(self.norm2(y))))


class ClipAttention(nn.Module):
    """x + out(attention(norm(x))) over all frames, one head, 1x1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = TimeGroupNorm(width, 32, 1e-6)
        self.q, self.k, self.v, self.out = (nn.Conv1d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, F] -> [B, C, F]."""
        normed = self.norm(x)
        q, k, v = (layer(normed).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))
