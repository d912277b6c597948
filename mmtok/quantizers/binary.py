"""Quantizers whose codes are rows of bits: packing bits into codes and back.

Legend: B batch, n bits per position, K codebooks (groups of bits), S positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.quantizers.base import Quantizer, check_codes, code_stats


class Binary(Quantizer):
    """n bits a position, sent as K codes.

    bits           n
    groups         bits of each code, in channel order: [18] is one code of 18 bits, [6, 12] two. Default: one code of
                   n bits (at most 62)
    little_endian  whether the first channel of a group is its lowest bit (LFQ of Open-MAGVIT2) or its highest (BSQ,
                   BAE, vector-quantize-pytorch)
    """

    places: Tensor

    def __init__(self, bits: int, groups: list[int] | None, little_endian: bool) -> None:
        super().__init__()
        groups = [bits] if groups is None else list(groups)
        if bits < 1 or sum(groups) != bits or not 1 <= min(groups) <= max(groups) <= 62:
            raise ValueError(f"quantizer.groups: parts of 1 to 62 bits that sum to {bits}, got {groups}")
        self.bits, self.groups = bits, groups
        self.codebook_sizes = (tuple(1 << size for size in groups),)
        places = [i if little_endian else size - 1 - i for size in groups for i in range(size)]
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def pack(self, bits: Tensor) -> Tensor:
        """bool [B, n, *S] -> int64 [B, K, *S]."""
        values = bits.movedim(1, -1).to(torch.int64) << self.places
        return torch.stack([part.sum(-1) for part in values.split(self.groups, -1)], 1)

    def unpack(self, grids: tuple[Tensor, ...]) -> Tensor:
        """The inverse, for grids = (int64 [B, K, *S],); ValueError for codes out of range."""
        check_codes(grids, self.codebook_sizes)
        repeats = torch.tensor(self.groups, device=grids[0].device)
        codes = grids[0].movedim(1, -1).repeat_interleave(repeats, -1)
        return ((codes >> self.places) & 1).bool().movedim(-1, 1)

    def channels(self, keep: tuple[Tensor, ...] | None, grid: Tensor) -> Tensor | None:
        """The mask of the codes as a mask of their bits, bool [B, n, *S]."""
        if keep is None:
            return None
        repeats = torch.tensor(self.groups, device=grid.device)
        return keep[0].expand_as(grid).repeat_interleave(repeats, 1)

    def statistics(self, grid: Tensor, keep: tuple[Tensor, ...] | None) -> dict[str, Tensor]:
        """Usage and perplexity, numbered by codebook where there are several."""
        stats: dict[str, Tensor] = {}
        for k, size in enumerate(self.codebook_sizes[0]):
            rows = None if keep is None else keep[0].expand_as(grid)[:, k].flatten()
            suffix = f"_{k}" if len(self.groups) > 1 else ""
            stats |= code_stats(grid[:, k].flatten(), size, rows, suffix)
        return stats
