"""X-Codec-2's decoder (arXiv 2502.04128): a transformer at frame rate between residual blocks, and a Fourier head.

Legend: B batch, D latent channels, C channels, F frames, H heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.istft import ISTFTHead
from mmtok.nn.vocos import ChannelNorm, NormedBlock


class VocosTransformerDecoder(nn.Module):
    """z [B, D, F] -> x [B, 1, F * hop]. It hears the whole clip.

    dim     D
    width   C, a multiple of 32; heads: H; hidden: width inside the MLPs, None: four times C; layers: number of them
    n_fft   of the head; None: four hops

    The published attention turns queries and keys by an angle that depends on the head, not on the frame, which changes
    no product of the two: there are no positions here, and order is told by the convolutions.
    """

    channels = 1

    def __init__(
        self, dim: int = 1024, width: int = 1024, layers: int = 12, heads: int = 16, hidden: int | None = None,
        hop: int = 320, n_fft: int | None = None, dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim, self.stride = dim, hop
        self.embed = nn.Conv1d(dim, width, 7, padding=3)
        self.before = nn.Sequential(NormedBlock(width, dropout), NormedBlock(width, dropout))
        self.layers = nn.ModuleList(PlainLayer(width, heads, hidden or 4 * width) for _ in range(layers))
        self.after = nn.Sequential(NormedBlock(width, dropout), NormedBlock(width, dropout))
        self.final = ChannelNorm(width)
        self.head = ISTFTHead(width, n_fft or 4 * hop, hop)

    def forward(self, z: Tensor) -> Tensor:
        x = self.before(self.embed(z)).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.final(self.after(x.transpose(1, 2))))


class PlainLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): RMS norms, SiLU, no biases, no positions."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"decoder.width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, 1e-6), nn.RMSNorm(width, 1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, F, C] -> [B, F, C]."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.up(self.norm2(x))))
