"""The contract every quantizer keeps.

Legend: B batch, D channels, K codebooks, S positions ((N,), (h, w), (t, h, w), (T,)), N = B * prod(S) vectors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmtok.keep import Shapes
from mmtok.types import Quantized

F = TypeVar("F", bound=Callable[..., Any])


class Quantizer(nn.Module):
    """Maps vectors to codes and back.

    dim             D of the latents it takes and returns
    codebook_sizes  per grid, one size per codebook

    `forward(z [B, D, *S], keep=None) -> Quantized` and `decode(grids, keep=None) -> z [B, D, *S]`, both float32
    inside whatever the autocast state. `keep` (bool, one per grid, broadcastable to [B, K, *S]) masks sums, losses
    and codebook statistics. In eval mode `decode(out.grids, keep)` equals `out.z`: nothing leaks around the codes.
    """

    dim: int
    codebook_sizes: tuple[tuple[int, ...], ...]

    def shapes(self, positions: tuple[int, ...]) -> Shapes:
        """(K, *S) of every grid for latents with these positions."""
        ((*sizes,),) = self.codebook_sizes
        return ((len(sizes), *positions),)

    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        raise NotImplementedError

    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        raise NotImplementedError


def full_precision(method: F) -> F:
    """Runs a method with autocast off on the device of its first tensor, and that tensor in float32."""

    @functools.wraps(method)
    def wrapped(self: nn.Module, z: Tensor, *args: Any) -> Any:
        with torch.autocast(z.device.type, enabled=False):
            return method(self, z.float(), *args)

    return wrapped  # type: ignore[return-value]


def to_vectors(z: Tensor) -> Tensor:
    """[B, D, *S] -> [N, D]."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def from_vectors(vectors: Tensor, like: Tensor) -> Tensor:
    """[N, D] -> [B, D, *S], with B and S of `like` [B, *, *S]."""
    return vectors.view(like.shape[0], *like.shape[2:], vectors.shape[-1]).movedim(-1, 1)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of float [N, ...] over the rows where bool [N] is true; 0 where none is."""
    if mask is None:
        return values.mean()
    weight = mask.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def code_stats(codes: Tensor, size: int, mask: Tensor | None = None, prefix: str = "") -> dict[str, Tensor]:
    """Usage (share of codes hit, 0..1) and perplexity (1..size) of int64 [N] codes in this batch."""
    if mask is not None:
        codes = codes[mask]
    counts = torch.bincount(codes.flatten(), minlength=size).float()
    p = counts / counts.sum().clamp(min=1)
    entropy = -(p * p.clamp(min=1e-12).log()).sum()
    return {f"{prefix}usage": (counts > 0).float().mean(), f"{prefix}perplexity": entropy.exp()}


def check_codes(grids: tuple[Tensor, ...], sizes: tuple[tuple[int, ...], ...]) -> None:
    """ValueError before any gather when a code lies outside its codebook or a grid is missing."""
    if len(grids) != len(sizes):
        raise ValueError(f"quantizer.decode: expected {len(sizes)} grids, got {len(grids)}")
    for index, (grid, books) in enumerate(zip(grids, sizes, strict=True)):
        if grid.shape[1] != len(books):
            raise ValueError(f"quantizer.decode: grid {index} has {grid.shape[1]} codebooks, expected {len(books)}")
        if not grid.numel():
            continue
        low, high = int(grid.min()), int(grid.max())
        if low < 0 or high >= max(books):
            raise ValueError(f"quantizer.decode: grid {index} takes codes 0..{max(books) - 1}, got {low}..{high}")
