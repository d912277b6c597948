"""Codes and values of quantizers as plain tensor operations, which a graph can hold.

The forward of a quantizer measures losses and statistics, checks its input and calls fused kernels; none of that can be
traced. Here is only what a code is, one function a kind, held to the forward by the parity report and the tests.

Legend: B batch, D channels, K codebooks, S positions, S_i those of grid i, N = B * prod(S) vectors, V codes.
"""

from __future__ import annotations

from functools import singledispatch
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.quantizers.base import Quantizer, to_vectors
from mmtok.quantizers.entropy_constrained import EntropyConstrainedVQ
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.ibq import IBQ
from mmtok.quantizers.lookup_free import LFQ
from mmtok.quantizers.multiscale import MultiScale
from mmtok.quantizers.projected import Projected
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.scales import ScaleResidual
from mmtok.quantizers.split import SplitResidual
from mmtok.quantizers.stochastic import StochasticVQ
from mmtok.quantizers.vq import VQ


@singledispatch
def codes(quantizer: Quantizer, z: Tensor) -> Tensor:
    """The grid int64 [B, K, *S] of latents [B, D, *S]; ValueError for quantizers that have no plain form here."""
    raise ValueError(
        f"export: {type(quantizer).__name__} has no exportable form. VQ, IBQ, FSQ, LFQ, BSQ and residual, projected,"
        " split or multi-scale quantizers of these have one; mmtok/export/quantizers.py is where another is added"
    )


@singledispatch
def values(quantizer: Quantizer, grid: Tensor) -> Tensor:
    """The latents float32 [B, D, *S] of a grid int64 [B, K, *S]; codes are not checked."""
    return codes(quantizer, grid)  # the same refusal


@singledispatch
def grids(quantizer: Quantizer, z: Tensor) -> tuple[Tensor, ...]:
    """Every grid int64 [B, K, *S_i] of latents [B, D, *S], coarse first."""
    return (codes(quantizer, z),)


@singledispatch
def latents(quantizer: Quantizer, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
    """The latents float32 [B, D, *S] of the grids; of several, `keep` masks what is read, None reads all."""
    return values(quantizer, grids[0])


@grids.register
def _(quantizer: MultiScale, z: Tensor) -> tuple[Tensor, ...]:
    total, found = torch.zeros_like(z), []
    for index, shape in enumerate(quantizer.shapes(tuple(z.shape[2:]))):
        scale = cast(Quantizer, quantizer.scales[index])
        found.append(codes(scale, F.interpolate(z - total, shape[1:], mode="area")))
        total = total + _grown(values(scale, found[-1]), z.shape[2:], quantizer.mode)
    return tuple(found)


@latents.register
def _(quantizer: MultiScale, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
    size = grids[quantizer.strides.index(min(quantizer.strides))].shape[2:]
    total = torch.zeros(())
    for index, grid in enumerate(grids):
        value = _sent(values(cast(Quantizer, quantizer.scales[index]), grid), keep, index)
        total = total + _grown(value, size, quantizer.mode)
    return total


@grids.register
def _(quantizer: ScaleResidual, z: Tensor) -> tuple[Tensor, ...]:
    rest, found = z, []
    for index, shape in enumerate(quantizer.shapes(tuple(z.shape[2:]))):
        size = shape[1:]
        seen = rest if size == tuple(rest.shape[2:]) else F.interpolate(rest, size, mode="area")
        found.append(codes(quantizer.quantizer, seen))
        rest = rest - _of_scale(quantizer, values(quantizer.quantizer, found[-1]), index, z.shape[2:])
    return tuple(found)


@latents.register
def _(quantizer: ScaleResidual, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
    size, total = grids[-1].shape[2:], torch.zeros(())
    for index, grid in enumerate(grids):
        value = _of_scale(quantizer, _sent(values(quantizer.quantizer, grid), keep, index), index, size)
        if keep is not None:  # the bias of its convolution must not speak for a scale that is not sent at all
            value = value * keep[index].flatten(1).any(1).view(-1, *[1] * len(size))[:, None]
        total = total + value
    return total


def _of_scale(quantizer: ScaleResidual, value: Tensor, index: int, size: torch.Size) -> Tensor:
    value = _grown(value * quantizer.gain**index, size, quantizer.mode)
    return value if quantizer.phi is None else quantizer.phi(value, index / max(1, len(quantizer.scales) - 1))


def _sent(value: Tensor, keep: tuple[Tensor, ...] | None, index: int) -> Tensor:
    return value if keep is None else value * keep[index].any(1, keepdim=True)


def _grown(value: Tensor, size: torch.Size, mode: str) -> Tensor:
    return value if value.shape[2:] == size else F.interpolate(value, size=size, mode=mode)


@codes.register
def _(quantizer: VQ, z: Tensor) -> Tensor:
    if type(quantizer).assign is not VQ.assign and not isinstance(quantizer, StochasticVQ):
        raise ValueError(f"export: {type(quantizer).__name__} chooses its codes in a way that has no exportable form")
    vectors = quantizer.lookup(quantizer.unit(to_vectors(z)))
    table = quantizer.lookup(quantizer.table().detach())
    # |x - c|^2 without |x|^2, which is the same for every code
    nearest = (2 * vectors @ table.T - table.square().sum(1)).argmax(1)
    return nearest.view(z.shape[0], 1, *z.shape[2:])


@codes.register
def _(quantizer: EntropyConstrainedVQ, z: Tensor) -> Tensor:
    table = quantizer.table().detach()
    best = (2 * to_vectors(z) @ table.T - table.square().sum(1) - quantizer.price()).argmax(1)
    return best.view(z.shape[0], 1, *z.shape[2:])


@values.register
def _(quantizer: VQ, grid: Tensor) -> Tensor:
    return F.embedding(grid[:, 0], quantizer.table().detach()).movedim(-1, 1)


@codes.register
def _(quantizer: IBQ, z: Tensor) -> Tensor:
    return (to_vectors(z) @ quantizer.codebook.float().T).argmax(1).view(z.shape[0], 1, *z.shape[2:])


@values.register
def _(quantizer: IBQ, grid: Tensor) -> Tensor:
    return F.embedding(grid[:, 0], quantizer.codebook.float()).movedim(-1, 1)


@codes.register
def _(quantizer: FSQ, z: Tensor) -> Tensor:
    z = z.movedim(1, -1)
    bounded = quantizer.bound(quantizer.bound(z)) if quantizer.double_bound else quantizer.bound(z)
    digits = (bounded.round() + quantizer.levels // 2).to(torch.int64)
    return (digits * quantizer.basis).sum(-1)[:, None]


@values.register
def _(quantizer: FSQ, grid: Tensor) -> Tensor:
    half_width = quantizer.levels // 2
    digits = grid[:, 0, ..., None] // quantizer.basis % quantizer.levels
    return ((digits - half_width) / half_width).movedim(-1, 1)


@codes.register
def _(quantizer: LFQ, z: Tensor) -> Tensor:
    bits = (quantizer.unit(z) > 0).movedim(1, -1).to(torch.int64) * _weights(quantizer)
    return torch.stack([part.sum(-1) for part in bits.split(quantizer.groups, -1)], 1)


@values.register
def _(quantizer: LFQ, grid: Tensor) -> Tensor:
    owner = torch.repeat_interleave(torch.arange(len(quantizer.groups)), torch.tensor(quantizer.groups))
    bits = grid.movedim(1, -1)[..., owner] // _weights(quantizer) % 2
    return ((2 * bits - 1) * quantizer.amplitude).float().movedim(-1, 1)


def _weights(quantizer: LFQ) -> Tensor:
    """int64 [n]: what each bit adds to its code. Shifts are not known to every runtime, products are."""
    return torch.ones_like(quantizer.places) << quantizer.places


@codes.register
def _(quantizer: Projected, z: Tensor) -> Tensor:
    return codes(quantizer.quantizer, quantizer.inward(z))


@values.register
def _(quantizer: Projected, grid: Tensor) -> Tensor:
    return quantizer.project_out(values(quantizer.quantizer, grid).movedim(1, -1)).movedim(-1, 1)


@codes.register
def _(quantizer: Residual, z: Tensor) -> Tensor:
    found = []
    for index in range(quantizer.num_quantizers):
        depth = quantizer.at(index)
        found.append(codes(depth, z))
        z = z - values(depth, found[-1])
    return torch.cat(found, 1)


@values.register
def _(quantizer: Residual, grid: Tensor) -> Tensor:
    """Any first depths: the grid may have fewer than K codebooks."""
    total, start = torch.zeros(()), 0
    for index in range(quantizer.num_quantizers):
        count = len(quantizer.at(index).codebook_sizes[0])
        if start + count <= grid.shape[1]:
            total = total + values(quantizer.at(index), grid[:, start : start + count])
        start += count
    return total


@codes.register
def _(quantizer: SplitResidual, z: Tensor) -> Tensor:
    return torch.cat([codes(quantizer.first, z), codes(quantizer.rest, z)], 1)


@values.register
def _(quantizer: SplitResidual, grid: Tensor) -> Tensor:
    cut = len(quantizer.first.codebook_sizes[0])
    first = values(quantizer.first, grid[:, :cut])
    return first if grid.shape[1] <= cut else first + values(quantizer.rest, grid[:, cut:])
