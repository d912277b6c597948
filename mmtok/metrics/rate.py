"""What tokens cost: nominal bits, bits under the stored code tables, and bytes of the whole `.mmt` file.

Legend: B batch, K codebooks of a grid, S positions, V codebook size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.bitstream import pack
from mmtok.keep import coding_bits
from mmtok.metrics.base import Metric
from mmtok.types import Tokens


class Rate(Metric):
    """Means per item of three prices, and each of them per original pixel.

    bits_nominal  log2(V) a sent code, plus what says which codes are sent, plus side information
    bits_side     the part of it that is not codes: the length, and side information
    bits_entropy  as bits_nominal, but a code costs -log2 of its probability in the tables that are stored with the
                  weights and were fitted on training data; absent when the model has no tables
    bytes_file    whole `.mmt` files, header and checksum included
    """

    def __init__(self) -> None:
        names = ("pixels", "sent", "nominal", "side", "entropy", "bytes")
        states = {name: torch.zeros(1, dtype=torch.float64) for name in names}
        super().__init__(count=torch.zeros(1, dtype=torch.int64), tabled=torch.zeros(1, dtype=torch.int64), **states)

    def update(self, tokens: Tokens) -> Tensor:
        """Counts a batch; returns the file bytes of every item, int64 [B]."""
        tokens = tokens.to("cpu")
        sizes = torch.tensor([len(pack(tokens[i])) for i in range(len(tokens))], dtype=torch.int64)
        nominal, side = tokens.bits, side_bits(tokens)
        self.add("count", torch.tensor([len(tokens)]))
        self.add("pixels", tokens.size.double().prod(1).sum().view(1))
        self.add("sent", tokens.num_sent.sum().view(1))
        self.add("nominal", nominal.sum().view(1))
        self.add("side", side.sum().view(1))
        self.add("bytes", sizes.sum().view(1))
        if tokens.tables is not None:
            self.add("tabled", torch.tensor([len(tokens)]))
            self.add("entropy", (entropy_bits(tokens) + side).sum().view(1))
        return sizes

    def compute(self) -> dict[str, float]:
        state = {name: float(value) for name, value in self.states.items()}
        count, pixels = state["count"], state["pixels"]
        if not count:
            raise ValueError("rate: no items were evaluated")
        out = {
            "tokens": state["sent"] / count, "bits_nominal": state["nominal"] / count,
            "bits_side": state["side"] / count, "bytes_file": state["bytes"] / count,
            "bpp_nominal": state["nominal"] / pixels, "bpp_file": 8 * state["bytes"] / pixels,
        }
        if state["tabled"] == count:
            out |= {"bits_entropy": state["entropy"] / count, "bpp_entropy": state["entropy"] / pixels}
        return out


class FileSizes(Metric):
    """Mean bytes of codec files, and bits per pixel."""

    def __init__(self) -> None:
        super().__init__(**{name: torch.zeros(1, dtype=torch.int64) for name in ("count", "bytes", "pixels")})

    def update(self, sizes: Tensor, images: Tensor) -> None:
        """Counts int64 [B] bytes of the files of images [B, 3, H, W]."""
        self.add("count", torch.tensor([len(images)]))
        self.add("bytes", sizes.sum().view(1))
        self.add("pixels", torch.tensor([images[:, 0].numel()]))

    def compute(self) -> dict[str, float]:
        count, size, pixels = (int(self.states[name]) for name in ("count", "bytes", "pixels"))
        if not count:
            raise ValueError("rate: no files were counted")
        return {"bytes_file": size / count, "bpp_file": 8 * size / pixels}


def side_bits(tokens: Tokens) -> Tensor:
    """float64 [B]: bits of the keep masks and of side information."""
    total = torch.full((len(tokens),), coding_bits(tokens.coding, tokens.shapes), dtype=torch.float64)
    for side in tokens.side.values():
        total += side.bits(len(tokens))
    return total


def entropy_bits(tokens: Tokens) -> Tensor:
    """float64 [B]: -log2 of the table probability of every sent code, summed; ValueError without tables."""
    if tokens.tables is None:
        raise ValueError("entropy_bits: the tokens carry no code tables")
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for index, (grid, mask, sizes) in enumerate(zip(tokens.grids, tokens.keep, tokens.codebook_sizes, strict=True)):
        total += tokens.tables.bits(index, grid, mask.expand_as(grid), sizes)
    return total
