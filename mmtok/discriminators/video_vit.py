"""A transformer that judges whole clips (LARP, arXiv 2410.21264).

Legend: B batch, C channels, T H W video, t h w patches, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtok.nn.block_attention import BlockTransformer
from mmtok.nn.positions import sincos_grid


class VideoViT(nn.Module):
    """x [B, in_channels, T, H, W] in [-1, 1] -> one logit a clip, float [B, 1], read off a class token.

    patch  (frames, rows, columns); a clip that patches do not fill is filled up by its last frame and edges. Positions
           are sines, so any size will do
    """

    def __init__(
        self, patch: tuple[int, int, int] = (4, 8, 8), width: int = 512, layers: int = 12, heads: int = 8,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"discriminator.width must be a multiple of 4, got {width}")
        self.patch = (patch[0], patch[1], patch[2])
        self.patch_embed = nn.Conv3d(in_channels, width, self.patch, self.patch)
        self.class_token = nn.Parameter(torch.randn(width) * 0.02)
        self.transformer = BlockTransformer(width, layers, heads, 4 * width)
        self.norm = nn.LayerNorm(width)
        self.logit = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        short = [-n % p for n, p in zip(x.shape[2:], self.patch, strict=True)]
        if any(short):
            x = nn.functional.pad(x, (0, short[2], 0, short[1], 0, short[0]), mode="replicate")
        y = self.patch_embed(x).movedim(1, -1)
        size = (y.shape[1], y.shape[2], y.shape[3])
        y = (y + sincos_grid(size, y.shape[-1]).to(y)).flatten(1, 3)
        y = torch.cat([self.class_token.expand(len(y), 1, -1).to(y), y], 1)
        return self.logit(self.norm(self.transformer(y[:, None])[:, 0, 0]))
