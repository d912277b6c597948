"""How a receiver learns which codes were sent: the shape of a keep mask and its price in bits.

Legend: B batch, K codebooks, S positions of a grid ((N,), (h, w), (t, h, w), (T,)).

A keep mask is a tuple with one bool tensor per grid, broadcastable to that grid [B, K, *S]. A coding
describes the family of masks that can occur, so that only what is free inside the family is written:
`symbols` turns masks into small integers, `masks` turns them back, `bits` is the sum of log2 of the
alphabets. What already follows from the media size is not coded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Shapes = tuple[tuple[int, ...], ...]  # one (K, *S) per grid


class KeepCoding(Protocol):
    """One family of keep masks. `symbols` are int64 [B, n], `sizes` their n alphabets."""

    def sizes(self, shapes: Shapes) -> list[int]: ...

    def symbols(self, keep: tuple[Tensor, ...], shapes: Shapes) -> Tensor: ...

    def masks(self, symbols: Tensor, shapes: Shapes) -> tuple[Tensor, ...]: ...


def coding_bits(coding: KeepCoding, shapes: Shapes) -> float:
    """Bits that one item pays for its mask: sum of log2 of the alphabets (float)."""
    return sum(math.log2(size) for size in coding.sizes(shapes))


def full_keep(shapes: Shapes, batch: int, device: torch.device | str | None = None) -> tuple[Tensor, ...]:
    """Masks that keep everything: bool [B, 1, 1...] per grid."""
    return tuple(torch.ones((batch, *[1] * len(shape)), dtype=torch.bool, device=device) for shape in shapes)


def prefix_mask(lengths: Tensor, size: int) -> Tensor:
    """bool [*lengths.shape, size]: position i is kept where i < length."""
    return torch.arange(size, device=lengths.device) < lengths[..., None]


@dataclass(frozen=True)
class Full:
    """Every code is sent; costs nothing."""

    def sizes(self, shapes: Shapes) -> list[int]:
        return []

    def symbols(self, keep: tuple[Tensor, ...], shapes: Shapes) -> Tensor:
        if not all(bool(mask.all()) for mask in keep):
            raise ValueError("tokens.keep: coding Full() needs every code kept")
        return torch.zeros(keep[0].shape[0], 0, dtype=torch.int64, device=keep[0].device)

    def masks(self, symbols: Tensor, shapes: Shapes) -> tuple[Tensor, ...]:
        return full_keep(shapes, symbols.shape[0], symbols.device)


@dataclass(frozen=True)
class Prefix:
    """The first n entries of one axis of every grid, n >= 1, one n per item.

    axis 1 is the codebook axis (residual depth); axis 2 and up are positions; negative axes count from
    the end. Every grid must have the same size along the axis.
    """

    axis: int = -1

    def _size(self, shapes: Shapes) -> int:
        index = self.axis - 1 if self.axis > 0 else self.axis
        sizes = {shape[index] for shape in shapes}
        if len(sizes) != 1:
            raise ValueError(f"Prefix(axis={self.axis}): grids differ along the axis: {sorted(sizes)}")
        return sizes.pop()

    def _view(self, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
        view = [mask.shape[0]] + [1] * len(shape)
        view[self.axis if self.axis > 0 else self.axis + len(view)] = mask.shape[1]
        return mask.view(view)

    def sizes(self, shapes: Shapes) -> list[int]:
        return [self._size(shapes)]

    def symbols(self, keep: tuple[Tensor, ...], shapes: Shapes) -> Tensor:
        size = self._size(shapes)
        axis = self.axis if self.axis > 0 else self.axis + keep[0].dim()
        first = keep[0].expand(*keep[0].shape[:axis], size, *keep[0].shape[axis + 1 :])
        lengths = first.movedim(axis, -1).flatten(1, -2)[:, 0].sum(-1)
        symbols = (lengths - 1)[:, None]
        _check_family(self, symbols, keep, shapes)
        return symbols

    def masks(self, symbols: Tensor, shapes: Shapes) -> tuple[Tensor, ...]:
        mask = prefix_mask(symbols[:, 0] + 1, self._size(shapes))
        return tuple(self._view(mask, shape) for shape in shapes)


@dataclass(frozen=True)
class FlatPrefix:
    """The first n codes of all grids laid end to end (grid by grid, position by position), n >= 1."""

    def sizes(self, shapes: Shapes) -> list[int]:
        return [sum(math.prod(shape) for shape in shapes)]

    def symbols(self, keep: tuple[Tensor, ...], shapes: Shapes) -> Tensor:
        count = sum(mask.expand(-1, *shape).flatten(1).sum(1) for mask, shape in zip(keep, shapes, strict=True))
        symbols = (torch.as_tensor(count) - 1)[:, None]
        _check_family(self, symbols, keep, shapes)
        return symbols

    def masks(self, symbols: Tensor, shapes: Shapes) -> tuple[Tensor, ...]:
        masks, start = [], 0
        for codebooks, *positions in shapes:
            size = codebooks * math.prod(positions)
            mask = prefix_mask(symbols[:, 0] + 1 - start, size).view(-1, *positions, codebooks)
            masks.append(mask.movedim(-1, 1))
            start += size
        return tuple(masks)


@dataclass(frozen=True)
class GridPrefix:
    """The first n grids (scales, or the rates of a hierarchical codec), n >= 1, one n per item."""

    def sizes(self, shapes: Shapes) -> list[int]:
        return [len(shapes)]

    def symbols(self, keep: tuple[Tensor, ...], shapes: Shapes) -> Tensor:
        symbols = (torch.stack([mask.flatten(1)[:, 0] for mask in keep]).sum(0) - 1)[:, None]
        _check_family(self, symbols, keep, shapes)
        return symbols

    def masks(self, symbols: Tensor, shapes: Shapes) -> tuple[Tensor, ...]:
        return tuple(
            (symbols[:, 0] >= index).view(-1, *[1] * len(shape)) for index, shape in enumerate(shapes)
        )


@dataclass(frozen=True)
class BlockPrefix:
    """One prefix per block of a single grid [B, K, t, ..., n]: axis 2 counts blocks, the last axis is cut."""

    def sizes(self, shapes: Shapes) -> list[int]:
        ((_, blocks, *_, size),) = shapes
        return [size] * blocks

    def symbols(self, keep: tuple[Tensor, ...], shapes: Shapes) -> Tensor:
        ((_, blocks, *rest),) = shapes
        mask = keep[0][:, 0].expand(-1, blocks, *rest)
        symbols = mask.reshape(mask.shape[0], blocks, -1, rest[-1])[:, :, 0].sum(-1) - 1
        _check_family(self, symbols, keep, shapes)
        return symbols

    def masks(self, symbols: Tensor, shapes: Shapes) -> tuple[Tensor, ...]:
        ((_, blocks, *rest),) = shapes
        mask = prefix_mask(symbols + 1, rest[-1])
        return (mask.view(-1, 1, blocks, *[1] * (len(rest) - 1), rest[-1]),)


@dataclass(frozen=True)
class BlockDepth:
    """One residual depth per block of a single grid [B, K, t, ...]: axis 2 counts blocks, the first codebooks of each
    are sent."""

    def sizes(self, shapes: Shapes) -> list[int]:
        ((books, blocks, *_),) = shapes
        return [books] * blocks

    def symbols(self, keep: tuple[Tensor, ...], shapes: Shapes) -> Tensor:
        ((books, blocks, *rest),) = shapes
        mask = keep[0].expand(-1, books, blocks, *rest)
        symbols = mask.reshape(mask.shape[0], books, blocks, -1)[..., 0].sum(1) - 1
        _check_family(self, symbols, keep, shapes)
        return symbols

    def masks(self, symbols: Tensor, shapes: Shapes) -> tuple[Tensor, ...]:
        ((books, _, *rest),) = shapes
        mask = prefix_mask(symbols + 1, books).transpose(1, 2)
        return (mask.reshape(*mask.shape, *[1] * len(rest)),)


@dataclass(frozen=True)
class Bitmap:
    """Any subset of positions, shared by the K codebooks of a grid: one bit a position (KARL, LaVIT)."""

    def sizes(self, shapes: Shapes) -> list[int]:
        return [2] * sum(math.prod(shape[1:]) for shape in shapes)

    def symbols(self, keep: tuple[Tensor, ...], shapes: Shapes) -> Tensor:
        parts = [mask[:, 0].expand(-1, *shape[1:]).flatten(1) for mask, shape in zip(keep, shapes, strict=True)]
        symbols = torch.cat(parts, 1).to(torch.int64)
        _check_family(self, symbols, keep, shapes)
        return symbols

    def masks(self, symbols: Tensor, shapes: Shapes) -> tuple[Tensor, ...]:
        sizes = [math.prod(shape[1:]) for shape in shapes]
        parts = symbols.bool().split(sizes, 1)
        return tuple(part.view(-1, 1, *shape[1:]) for part, shape in zip(parts, shapes, strict=True))


def _check_family(coding: KeepCoding, symbols: Tensor, keep: tuple[Tensor, ...], shapes: Shapes) -> None:
    """ValueError when the masks are not of the coding's family, so that a file never decodes to others."""
    if symbols.numel() and int(symbols.min()) < 0:
        raise ValueError(f"tokens.keep: {type(coding).__name__} must keep at least one code")
    for mask, again, shape in zip(keep, coding.masks(symbols, shapes), shapes, strict=True):
        if not torch.equal(mask.expand(-1, *shape), again.expand(-1, *shape)):
            raise ValueError(f"tokens.keep: the mask is not one that {coding} can describe")
