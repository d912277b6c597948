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
DENSE_COUNTS = 1 << 20  # largest codebook whose codes are counted in a dense table


class Quantizer(nn.Module):
    """Maps vectors to codes and back.

    dim             D of the latents it takes and returns
    codebook_sizes  per grid, one size per codebook; () for a continuous bottleneck

    `forward(z [B, D, *S], keep=None) -> Quantized` and `decode(grids, keep=None) -> z [B, D, *S]`, both float32
    inside whatever the autocast state. `keep` (bool, one per grid, broadcastable to [B, K, *S]) masks sums, losses
    and codebook statistics. In eval mode `decode(out.grids, keep)` equals `out.z`: nothing leaks around the codes.
    """

    training_state: tuple[str, ...] = ()  # buffers that only training reads; files for use leave them out
    dim: int
    codebook_sizes: tuple[tuple[int, ...], ...]
    value_gradient = False  # whether the reconstruction trains parameters of this quantizer through `z`

    def restart_training_state(self) -> None:
        """Sets the `training_state` of a model that was loaded without it, so that training can go on."""

    def shapes(self, positions: tuple[int, ...]) -> Shapes:
        """(K, *S) of every grid for latents with these positions."""
        ((*sizes,),) = self.codebook_sizes
        return ((len(sizes), *positions),)

    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        raise NotImplementedError

    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        raise NotImplementedError


def full_precision(method: F) -> F:
    """Runs `forward` or `decode` with autocast off on the device of its input, and float input as float32."""

    @functools.wraps(method)
    def wrapped(self: nn.Module, z: Tensor | tuple[Tensor, ...], *args: Any, **named: Any) -> Any:
        if isinstance(z, Tensor):
            z, device = z.float(), z.device.type
        else:
            device = z[0].device.type if z else "cpu"
        with torch.autocast(device, enabled=False):
            return method(self, z, *args, **named)

    return wrapped  # type: ignore[return-value]


def to_vectors(z: Tensor) -> Tensor:
    """[B, D, *S] -> [N, D]."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def from_vectors(vectors: Tensor, like: Tensor) -> Tensor:
    """[N, D] -> [B, D, *S], with B and S of `like` [B, *, *S]."""
    return vectors.view(like.shape[0], *like.shape[2:], vectors.shape[-1]).movedim(-1, 1)


def keep_mask(keep: tuple[Tensor, ...] | None, z: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The mask of a one-codebook quantizer as bool [B, 1, *S] and as rows bool [N]; (None, None) without a mask."""
    if keep is None:
        return None, None
    mask = keep[0].expand(z.shape[0], 1, *z.shape[2:])
    return mask, mask[:, 0].flatten()


def kept_positions(keep: tuple[Tensor, ...] | None, z: Tensor) -> Tensor | None:
    """bool [B, 1, *S]: where any codebook of any grid with the positions of z sends a code; None when all do.

    Grids of other sizes (scales) cover all of z, so they count everywhere.
    """
    if keep is None or not keep:
        return None
    sizes = [mask.shape[2:] for mask in keep]
    if any(n not in (1, m) for size in sizes for n, m in zip(size, z.shape[2:], strict=True)):
        return None
    found = keep[0].any(1, keepdim=True)
    for mask in keep[1:]:
        found = found | mask.any(1, keepdim=True)
    return found.expand(z.shape[0], 1, *z.shape[2:])


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of float [N, ...] over the rows where bool [N] is true; 0 where none is."""
    if mask is None:
        return values.mean()
    weight = mask.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def code_stats(codes: Tensor, size: int, mask: Tensor | None = None, suffix: str = "") -> dict[str, Tensor]:
    """Usage (share of codes hit, 0..1) and perplexity (1..size) of int64 [N] codes in this batch."""
    if mask is not None:
        codes = codes[mask]
    if size <= DENSE_COUNTS:
        counts = torch.bincount(codes.flatten(), minlength=size).float()
    else:  # the codes of 36 bits cannot be counted one by one
        counts = codes.unique(return_counts=True)[1].float()
    p = counts / counts.sum().clamp(min=1)
    entropy = -(p * p.clamp(min=1e-12).log()).sum()
    return {f"usage{suffix}": (counts > 0).float().sum() / size, f"perplexity{suffix}": entropy.exp()}


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
