"""Latent queries over video patches: encoder and decoder, whole clips at once or causal over blocks of frames.

Legend: B batch, T frames, s side, t blocks of `frames` frames, th tw tiles of s x s, R = B th tw, N latents of a block,
W width, D code dimension, P patches of a block, S = (t, N) or (t, th, tw, N).

A segment is what the positions reach: `blocks` blocks. Longer videos are segment after segment, larger pictures tile
beside tile, each on its own. Sources: LARP (arXiv 2410.21264), AdapTok (arXiv 2505.17011).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtok.nn.block_attention import BlockTransformer
from mmtok.nn.positions import sincos, sincos_grid
from mmtok.nn.stream import Stream


class LatentQueryLayout(nn.Module):
    """The sizes both halves share.

    dim         D
    num_latents N
    frames      of a block, a multiple of patch[0]
    blocks      of a segment; 1: every block sees only itself (LARP). More: a block sees the earlier ones (AdapTok)
    image_size  s, a multiple of patch[1] and patch[2]
    patch       (frames, rows, columns)
    """

    def __init__(
        self, dim: int, num_latents: int, frames: int, blocks: int, image_size: int, patch: tuple[int, int, int]
    ) -> None:
        super().__init__()
        if frames % patch[0] or image_size % patch[1] or image_size % patch[2]:
            raise ValueError(f"patch {list(patch)} does not fill {frames} frames of {image_size} pixels")
        self.dim, self.num_latents, self.frames, self.blocks = dim, num_latents, frames, blocks
        self.image_size = image_size
        self.patch = (patch[0], patch[1], patch[2])
        self.grid = (image_size // patch[1], image_size // patch[2])

    def pieces(self, total: int, start: int) -> list[tuple[int, int, int]]:
        """(first, behind the last, place in its segment) of runs of blocks that belong together."""
        found, at = [], 0
        while at < total:
            place = (start + at) % self.blocks
            count = min(self.blocks - place, total - at)
            found.append((at, at + count, place))
            at += count
        return found


class LatentQueryEncoder(LatentQueryLayout):
    """ViT over [patches, latent queries] of each block; the queries' outputs are the latents.

    width, layers, heads  LARP and AdapTok: 768, 12, 12
    gradient_checkpointing  recompute blocks in the backward pass
    """

    def __init__(
        self, dim: int, num_latents: int, frames: int = 16, blocks: int = 1, image_size: int = 128,
        patch: tuple[int, int, int] = (4, 8, 8), width: int = 768, layers: int = 12, heads: int = 12,
        mlp_ratio: float = 4.0, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(dim, num_latents, frames, blocks, image_size, patch)
        self.patch_embed = nn.Conv3d(3, width, self.patch, self.patch)
        self.latents = nn.Parameter(torch.randn(blocks * num_latents, width) * 0.02)
        self.transformer = BlockTransformer(
            width, layers, heads, int(width * mlp_ratio), gradient_checkpointing=gradient_checkpointing
        )
        self.project = nn.Linear(width, dim)
        self.apply(init_xavier)
        self.register_buffer("positions", _patch_positions(self, width), persistent=False)

    positions: Tensor

    def forward(self, x: Tensor, stream: Stream | None = None, start: int = 0) -> Tensor:
        """x [B, 3, T, H, W], T a multiple of `frames` (or of patch[0], below `frames`), sides of s -> [B, D, *S]."""
        return self.to_codes(self.features(x, stream, start))

    def features(self, x: Tensor, stream: Stream | None = None, start: int = 0) -> Tensor:
        """[B, th, tw, t, N, W]: the latents before their projection. `start` counts blocks that came before."""
        tiles = (x.shape[3] // self.image_size, x.shape[4] // self.image_size)
        y = video_tiles(x, tiles)
        total = max(1, x.shape[2] // self.frames)
        parts = []
        for first, last, place in self.pieces(total, start):
            if stream is not None and place == 0:
                stream.memory.clear()
            parts.append(self._segment(y[:, :, first * self.frames : last * self.frames], place, last - first, stream))
        return torch.cat(parts, 1).unflatten(0, (x.shape[0], *tiles))

    def to_codes(self, features: Tensor) -> Tensor:
        """[B, th, tw, t, N, W] -> z [B, D, *S]."""
        z = self.project(features).permute(0, 5, 3, 1, 2, 4)
        return z.flatten(2, 4) if z.shape[3] == z.shape[4] == 1 else z

    def _segment(self, x: Tensor, place: int, count: int, stream: Stream | None) -> Tensor:
        """[R, 3, count * frames, s, s] -> [R, count, N, W]."""
        patches = self.patch_embed(x).flatten(3).movedim(1, -1)  # [R, patch rows in time, h w, W]
        depth = self.frames // self.patch[0]
        patches = patches + self.positions[place * depth :][: patches.shape[1]]
        patches = patches.unflatten(1, (count, -1)).flatten(2, 3)
        queries = self.latents.unflatten(0, (self.blocks, -1))[place : place + count]
        y = torch.cat([patches, queries.expand(x.shape[0], -1, -1, -1)], 2)
        return self.transformer(y, stream=stream, wanted=self.num_latents)


class LatentQueryDecoder(LatentQueryLayout):
    """ViT over [latents, patch queries] of each block; the queries' outputs become pixels.

    With one block a segment everything sees everything. With more, patch queries see those of their own block and the
    latents up to it, and latents see only latents. Arguments as above.
    """

    def __init__(
        self, dim: int, num_latents: int, frames: int = 16, blocks: int = 1, image_size: int = 128,
        patch: tuple[int, int, int] = (4, 8, 8), width: int = 768, layers: int = 12, heads: int = 12,
        mlp_ratio: float = 4.0, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(dim, num_latents, frames, blocks, image_size, patch)
        self.embed = nn.Linear(dim, width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.transformer = BlockTransformer(
            width, layers, heads, int(width * mlp_ratio), memory_sees_local=blocks == 1,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, 3 * self.patch[0] * self.patch[1] * self.patch[2])
        self.apply(init_xavier)
        nn.init.zeros_(self.pixels.weight)
        self.register_buffer("positions", _patch_positions(self, width), persistent=False)
        places = sincos(torch.arange(blocks * num_latents), width).unflatten(0, (blocks, num_latents))
        self.register_buffer("latent_positions", places, persistent=False)

    positions: Tensor
    latent_positions: Tensor

    def forward(
        self, z: Tensor, keep: tuple[Tensor, ...] | None = None, frames: int | None = None,
        stream: Stream | None = None, start: int = 0,
    ) -> Tensor:
        """z [B, D, *S] -> x [B, 3, frames, th s, tw s].

        keep    one bool mask, broadcastable to [B, 1, *S]: nobody looks at latents that are not kept
        frames  frames wanted, None: all of every block
        """
        batch, total = z.shape[0], z.shape[2]
        tiles = (z.shape[3], z.shape[4]) if z.dim() == 6 else (1, 1)
        frames = total * self.frames if frames is None else frames
        seen = None
        if keep is not None:
            mask = keep[0].expand(batch, 1, *z.shape[2:])[:, 0]
            if not bool(mask.all()):
                seen = mask.reshape(batch, total, *tiles, -1).permute(0, 2, 3, 1, 4).flatten(0, 2)
        z = z.reshape(*z.shape[:2], total, *tiles, -1).permute(0, 3, 4, 2, 5, 1).flatten(0, 2)
        if seen is not None and stream is None:  # what nobody in the batch keeps need not be computed
            longest = int((seen * torch.arange(1, seen.shape[-1] + 1, device=z.device)).amax())
            z, seen = z[:, :, :longest], seen[:, :, :longest]
        parts = []
        for first, last, place in self.pieces(total, start):
            if stream is not None and place == 0:
                stream.memory.clear()
            wanted = min(last * self.frames, frames) - first * self.frames
            part = None if seen is None else seen[:, first:last]
            parts.append(self._segment(z[:, first:last], part, place, wanted, stream))
        return join_tiles(torch.cat(parts, 2).unflatten(0, (batch, *tiles)))

    def _segment(self, z: Tensor, seen: Tensor | None, place: int, frames: int, stream: Stream | None) -> Tensor:
        """z [R, count, n, D], seen bool [R, count, n] -> [R, 3, frames, s, s]."""
        rows, count, length, _ = z.shape
        latents = self.embed(z) + self.latent_positions[place : place + count, :length]
        whole = self.frames // self.patch[0]
        depth = whole if count > 1 else min(whole, -(-frames // self.patch[0]))
        queries = self.positions.unflatten(0, (self.blocks, whole))[place : place + count, :depth].flatten(1, 2)
        queries = (queries + self.query).expand(rows, -1, -1, -1)
        y = self.transformer(torch.cat([latents, queries], 2), length, seen, stream, queries.shape[2])
        y = self.pixels(self.norm(y)).unflatten(-1, (*self.patch, 3)).unflatten(2, (depth, *self.grid))
        # [R, count, t, h, w, pt, p1, p2, 3] -> [R, 3, count t pt, h p1, w p2]
        y = y.permute(0, 8, 1, 2, 5, 3, 6, 4, 7).flatten(7, 8).flatten(5, 6).flatten(2, 4)
        return y[:, :, :frames]


def video_tiles(x: Tensor, tiles: tuple[int, int]) -> Tensor:
    """[B, C, T, th s, tw s] -> [B th tw, C, T, s, s]."""
    x = x.unflatten(4, (tiles[1], -1)).unflatten(3, (tiles[0], -1))
    return x.permute(0, 3, 5, 1, 2, 4, 6).flatten(0, 2)


def join_tiles(x: Tensor) -> Tensor:
    """[B, th, tw, C, T, s, s] -> [B, C, T, th s, tw s]."""
    return x.permute(0, 3, 4, 1, 5, 2, 6).flatten(5, 6).flatten(3, 4)


def init_xavier(module: nn.Module) -> None:
    """For `apply`: linear and convolution weights Xavier-uniform, as MAE, biases 0."""
    if isinstance(module, (nn.Linear, nn.Conv3d)):
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _patch_positions(layout: LatentQueryLayout, width: int) -> Tensor:
    """[patch rows in time of a segment, h w, W]."""
    rows = layout.blocks * layout.frames // layout.patch[0]
    return sincos_grid((rows, *layout.grid), width).flatten(1, 2)
