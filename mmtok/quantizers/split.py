"""Quantizers in parallel: the same latents, summed; or parts of the channels, side by side.

Legend: B batch, D channels, K codebooks, S positions.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.keep import Shapes
from mmtok.quantizers.base import Quantizer, check_codes, full_precision
from mmtok.types import Quantized


class SplitResidual(Quantizer):
    """A semantic quantizer and a residual chain that code the same latents; the values add up (Mimi, arXiv 2410.00037).

    z [B, D, *S] -> one grid int64 [B, K1 + Kn, *S], semantic first. Losses are means over both, by their number of
    codebooks; statistics carry `_first` or `_rest`. Both parts pass the whole gradient to z, as in Mimi, where each
    has its own projections: `SplitResidual(Projected(VQ), Projected(Residual))`.
    """

    value_gradient = True

    def __init__(self, first: Quantizer, rest: Quantizer) -> None:
        super().__init__()
        if first.dim != rest.dim or len(first.codebook_sizes) != 1 or len(rest.codebook_sizes) != 1:
            raise ValueError(f"quantizer: first and rest need one dim, one grid each, got {first.dim} and {rest.dim}")
        self.dim = first.dim
        self.first, self.rest = first, rest
        self.codebook_sizes = (first.codebook_sizes[0] + rest.codebook_sizes[0],)
        self._cut = len(first.codebook_sizes[0])

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        (a, b) = (part(z, mask) for part, mask in zip((self.first, self.rest), self._masks(keep, z), strict=True))
        share = self._cut / len(self.codebook_sizes[0])
        losses = {name: value * share for name, value in a.losses.items()}
        for name, value in b.losses.items():
            losses[name] = losses.get(name, torch.zeros_like(value)) + value * (1 - share)
        stats = {f"{name}_first": value for name, value in a.stats.items()}
        stats |= {f"{name}_rest": value for name, value in b.stats.items()}
        return Quantized(a.z + b.z, (torch.cat([a.grids[0], b.grids[0]], 1),), losses, stats)

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        codes = (grids[0][:, : self._cut], grids[0][:, self._cut :])
        masks = self._masks(keep, grids[0])
        return self.first.decode((codes[0],), masks[0]) + self.rest.decode((codes[1],), masks[1])

    def _masks(
        self, keep: tuple[Tensor, ...] | None, like: Tensor
    ) -> tuple[tuple[Tensor] | None, tuple[Tensor] | None]:
        if keep is None:
            return None, None
        mask = keep[0].expand(like.shape[0], len(self.codebook_sizes[0]), *like.shape[2:])
        return (mask[:, : self._cut],), (mask[:, self._cut :],)


class Product(Quantizer):
    """Channel groups with a quantizer each (product quantization; FQGAN, ImageFolder, HiFi-Codec groups).

    z [B, D, *S], D = sum of the members' dims -> the members' grids joined along K, grid by grid, so members may have
    several grids (scales) of the same shapes. Losses are means over members; statistics carry the member as a suffix.

    quantizers   one per group, in channel order
    interleave   order the codebooks by depth first, then member (residual groups: a prefix over K cuts all members)
    disentangle  adds the loss `disentangle`, the mean squared cosine between the values of every pair of members, which
                 must have one dim (FQGAN, arXiv 2411.16681)
    """

    def __init__(self, quantizers: list[Quantizer], interleave: bool = False, disentangle: bool = False) -> None:
        super().__init__()
        if len({len(quantizer.codebook_sizes) for quantizer in quantizers}) != 1:
            raise ValueError("quantizer.quantizers: the members of a product need the same number of grids")
        if disentangle and (len(quantizers) < 2 or len({quantizer.dim for quantizer in quantizers}) != 1):
            raise ValueError("quantizer.disentangle needs two or more members of one dim")
        self.dim = sum(quantizer.dim for quantizer in quantizers)
        self.members = nn.ModuleList(quantizers)
        self.disentangle = disentangle
        self.value_gradient = any(quantizer.value_gradient for quantizer in quantizers)
        self._columns: list[list[list[int]]] = []  # per grid, per member: its places along K
        sizes = []
        for parts in zip(*(quantizer.codebook_sizes for quantizer in quantizers), strict=True):
            owners = [(depth, m) for m, part in enumerate(parts) for depth in range(len(part))]
            owners = sorted(owners) if interleave else owners
            self._columns.append([[i for i, (_, m) in enumerate(owners) if m == at] for at in range(len(parts))])
            sizes.append(tuple(parts[m][depth] for depth, m in owners))
        self.codebook_sizes = tuple(sizes)

    def shapes(self, positions: tuple[int, ...]) -> Shapes:
        first: Quantizer = self.members[0]  # type: ignore[assignment]
        places = [shape[1:] for shape in first.shapes(positions)]
        return tuple((len(sizes), *place) for sizes, place in zip(self.codebook_sizes, places, strict=True))

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        parts = z.split([member.dim for member in self.members], 1)  # type: ignore[misc]
        masks = self._masks(keep)
        outs = [member(part, mask) for member, part, mask in zip(self.members, parts, masks, strict=True)]
        losses: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        for index, out in enumerate(outs):
            for name, value in out.losses.items():
                losses[name] = losses.get(name, torch.zeros_like(value)) + value / len(outs)
            stats |= {f"{name}_{index}": value for name, value in out.stats.items()}
        if self.disentangle:
            pairs = [
                F.cosine_similarity(a.z, b.z, dim=1).square().mean() for a, b in itertools.combinations(outs, 2)
            ]
            losses["disentangle"] = torch.stack(pairs).mean()
        grids = []
        for g, columns in enumerate(self._columns):
            joined = torch.cat([out.grids[g] for out in outs], 1)
            grids.append(joined[:, torch.tensor([i for part in columns for i in part]).argsort().to(z.device)])
        return Quantized(torch.cat([out.z for out in outs], 1), tuple(grids), losses, stats)

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        values = []
        for index, (member, mask) in enumerate(zip(self.members, self._masks(keep), strict=True)):
            own = tuple(grid[:, columns[index]] for grid, columns in zip(grids, self._columns, strict=True))
            values.append(member.decode(own, mask))  # type: ignore[operator]
        return torch.cat(values, 1)

    def joined(self, parts: list[list[Any]], grid: int) -> list[Any]:
        """What every member has per codebook of a grid, in the order of the codebooks along K."""
        places = [i for columns in self._columns[grid] for i in columns]
        found = [item for part in parts for item in part]
        return [found[places.index(i)] for i in range(len(places))]

    def _masks(self, keep: tuple[Tensor, ...] | None) -> list[tuple[Tensor, ...] | None]:
        """keep of every member; a mask shared by all codebooks stays as it is."""
        if keep is None:
            return [None] * len(self.members)
        return [
            tuple(
                mask if mask.shape[1] == 1 else mask[:, columns[index]]
                for mask, columns in zip(keep, self._columns, strict=True)
            )
            for index in range(len(self.members))
        ]
