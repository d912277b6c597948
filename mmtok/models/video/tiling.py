"""Large pictures tile by tile: an option apart, because codes and pixels near tile borders are not those of the whole.

Legend: B batch, T H W video, t h w code grid, s stride in space, D code dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.models.video.conv import ConvVideoTokenizer
from mmtok.types import Batch, Tokens


@dataclass(frozen=True)
class Tiling:
    """What was done, to be reported beside every number taken on tiled video.

    tile, overlap  pixels
    tiles          how many (rows, columns)
    repeated       share of work done more than once: pixels in all tiles over pixels of the video, minus 1
    """

    tile: tuple[int, int]
    overlap: int
    tiles: tuple[int, int]
    repeated: float

    @property
    def exact(self) -> bool:
        """Whether one tile held everything, so that nothing differs from the whole."""
        return self.tiles == (1, 1)

    def __str__(self) -> str:
        rows, columns = self.tiles
        return (
            f"{rows} x {columns} tiles of {self.tile[0]} x {self.tile[1]} px, overlap {self.overlap} px"
            f" (+{100 * self.repeated:.0f} % work)"
        )


@torch.no_grad()
def encode_tiled(
    tokenizer: ConvVideoTokenizer, x: Tensor | Batch, tile: tuple[int, int] = (256, 256), overlap: int = 64
) -> tuple[Tokens, Tiling]:
    """Codes of x [B, 3, T, H, W] in [-1, 1], and how it was cut; memory is that of one tile.

    tile, overlap  pixels, multiples of s. Every latent comes from the tile in which it lies farthest from an edge.
    The tokens are ordinary ones. ValueError for sizes that do not fit the stride.
    """
    batch = x if isinstance(x, Batch) else Batch.of(x)
    tokenizer._check_media(batch.x)
    grid = tokenizer.positions(tuple(batch.x.shape[2:]))
    s, size, margin = _in_latents(tokenizer, tile, overlap)
    rows, columns = (_spans(n, length, margin) for n, length in zip(grid[1:], size, strict=True))
    z: Tensor | None = None
    for (top, bottom), (keep_top, keep_bottom) in rows:
        for (left, right), (keep_left, keep_right) in columns:
            part = tokenizer.latents(batch.x[..., top * s : bottom * s, left * s : right * s])
            if z is None:
                z = part.new_empty(*part.shape[:3], *grid[1:])
            inner = part[..., keep_top - top : keep_bottom - top, keep_left - left : keep_right - left]
            z[..., keep_top:keep_bottom, keep_left:keep_right] = inner
    assert z is not None
    keep, coding = tokenizer.keep_for(z)
    return tokenizer.tokens(tokenizer.quantize(z, keep), keep, coding, batch), _report(rows, columns, s, overlap, grid)


@torch.no_grad()
def decode_tiled(
    tokenizer: ConvVideoTokenizer, tokens: Tokens, tile: tuple[int, int] = (256, 256), overlap: int = 64
) -> tuple[Tensor, Tiling]:
    """Video [B, 3, T, H, W] in [-1, 1] of any tokens, tiles blended linearly where they overlap, and how it was cut."""
    tokenizer._check_id(tokens)
    z = tokenizer.embed(tokens)
    s, size, margin = _in_latents(tokenizer, tile, overlap)
    rows, columns = (_spans(n, length, margin) for n, length in zip(z.shape[3:], size, strict=True))
    out: Tensor | None = None
    for (top, bottom), _ in rows:
        for (left, right), _ in columns:
            part = tokenizer.reconstruct(z[..., top:bottom, left:right], tokens)
            if out is None:
                out = part.new_zeros(*part.shape[:3], z.shape[3] * s, z.shape[4] * s)
            weight = _ramp(top, bottom, rows, s).to(part)[:, None] * _ramp(left, right, columns, s).to(part)
            out[..., top * s : bottom * s, left * s : right * s] += part * weight
    assert out is not None
    x = tokenizer._from_model(out, tokens).float().clamp(-1, 1)
    return x, _report(rows, columns, s, overlap, tuple(z.shape[2:]))


Span = tuple[tuple[int, int], tuple[int, int]]  # (first, end) of a tile, and of what is kept of it


def _in_latents(tokenizer: ConvVideoTokenizer, tile: tuple[int, int], overlap: int) -> tuple[int, tuple[int, int], int]:
    """(s, tile and overlap in latents)."""
    s = tokenizer.stride[1]
    if any(n % s or n < s for n in tile) or overlap % s or not 0 <= overlap < min(tile):
        raise ValueError(f"tile {list(tile)} and overlap {overlap} must be multiples of {s} px, the overlap smaller")
    return s, (tile[0] // s, tile[1] // s), overlap // s


def _spans(count: int, tile: int, overlap: int) -> list[Span]:
    """Tiles of equal size over `count` latents; the last one is moved inwards, so that none is narrow."""
    starts = [0]
    while starts[-1] + tile < count:
        starts.append(min(starts[-1] + tile - overlap, count - tile))
    cuts = [0, *((b + a + tile) // 2 for a, b in zip(starts, starts[1:], strict=False)), count]
    ends = (min(start + tile, count) for start in starts)
    return list(zip(zip(starts, ends, strict=True), zip(cuts, cuts[1:], strict=False), strict=True))


def _ramp(first: int, end: int, spans: list[Span], s: int) -> Tensor:
    """float64 [(end - first) s]: weight of a tile along an axis; the weights of all tiles sum to 1 everywhere."""
    own = torch.zeros((end - first) * s, dtype=torch.float64)
    total = own.clone()
    for a, b in _bounds(spans):
        at = torch.arange(first * s, end * s, dtype=torch.float64) + 0.5
        # height above the nearer edge; edges of the picture have no slope
        left = at - a * s if a else torch.full_like(at, torch.inf)
        right = b * s - at if b < spans[-1][0][1] else torch.full_like(at, torch.inf)
        height = torch.minimum(left, right).clamp(min=0, max=(b - a) * s)
        total += height
        if (a, b) == (first, end):
            own = height
    return own / total


def _bounds(spans: list[Span]) -> Iterator[tuple[int, int]]:
    return (span[0] for span in spans)


def _report(
    rows: list[Span], columns: list[Span], s: int, overlap: int, grid: tuple[int, ...]
) -> Tiling:
    heights, widths = ([end - first for first, end in _bounds(spans)] for spans in (rows, columns))
    area = sum(heights) * sum(widths) / (grid[1] * grid[2])
    return Tiling((heights[0] * s, widths[0] * s), overlap, (len(rows), len(columns)), area - 1)
