"""How much wrong codes hurt: Frechet distance of images decoded from perturbed codes (pFID, arXiv 2503.08354).

The authors published neither code nor grid. This protocol: every code of an image is, with probability `rate`, replaced
by one drawn uniformly among the `neighbours` codes nearest to it in its codebook (itself among them; distances as
the quantizer compares); the images are decoded, rounded to 8 bits, and compared with the originals. A grid of
`GRID` = rates .25, .5, 1 times neighbours 10, 50, 100 is measured, and its mean. Draws follow from the seed, the
image's name and the cell, so they depend neither on batches nor on processes.

Legend: B batch, K codebooks, V codes, D their dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmtok.kernels import nearest_code
from mmtok.metrics.base import KeyCount, Metric, all_reduce, key_hash
from mmtok.metrics.extractors import Extractor
from mmtok.metrics.frechet import Moments, ReferenceMoments, count_name, frechet_distance
from mmtok.metrics.pixels import to_uint8
from mmtok.quantizers.base import Quantizer
from mmtok.quantizers.projected import Normalized, Projected
from mmtok.quantizers.scales import ScaleResidual
from mmtok.quantizers.split import Product
from mmtok.quantizers.vq import VQ
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Tokens


class Perturbation(NamedTuple):
    """Share of the codes that are drawn anew, and from how many neighbours."""

    rate: float
    neighbours: int


GRID = tuple(Perturbation(rate, count) for rate in (0.25, 0.5, 1.0) for count in (10, 50, 100))
NAMES = {"rfid": "pfid"}  # a stand-in's name gets a p in front


class PerturbedFrechet:
    """Feeds on this process's batches; `compute` sums over processes.

    tokenizer  in eval mode; its quantizer has tables of codes (VQ, alone, in products, over scales)
    extractor  the network of the distance: with the published Inception the keys begin with `pfid`, with the
               stand-in VGG16 with `pfd_vgg16`
    """

    def __init__(
        self, tokenizer: Tokenizer, extractor: Extractor, grid: Iterable[Perturbation] = GRID, seed: int = 0,
    ) -> None:
        self.tokenizer, self.extractor, self.seed = tokenizer.eval(), extractor, seed
        self.grid = tuple(grid)
        if not self.grid or any(not 0 <= cell.rate <= 1 or cell.neighbours < 1 for cell in self.grid):
            raise ValueError(f"pfid.grid: rates in [0, 1] and at least 1 neighbour, got {self.grid}")
        most = max(cell.neighbours for cell in self.grid)
        self.near = [[neighbours(table, most) for table in tables] for tables in code_tables(tokenizer.quantizer)]
        self.keys = KeyCount()
        self.reference = ReferenceMoments(extractor.dim)
        self.cells = [Moments(extractor.dim) for _ in range(1 + len(self.grid))]  # first the true codes

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Measures a batch: one encoding, one decoding per cell of the grid and one of the true codes."""
        self.keys.update(batch.keys)
        self.reference.update(self.extractor(to_uint8(batch.x))[0], batch.keys)
        tokens = self.tokenizer.encode(batch)
        for moments, cell in zip(self.cells, (None, *self.grid), strict=True):
            sent = tokens if cell is None else perturbed(tokens, self.near, cell, batch.keys, self.seed)
            moments.update(self.extractor(to_uint8(self.tokenizer.decode(sent)))[0])

    def compute(self) -> dict[str, float]:
        """Distances by key: `<name>_r<100 rate>_n<neighbours>_<count>`, `<name>_mean<cells>_<count>`, and the
        extractor's own name for the true codes."""
        all_reduce([self.keys, *self.reference.halves, *self.cells])
        real, clean = self.reference.whole(), self.extractor.name
        name = NAMES.get(clean, f"p{clean}")
        count, target = count_name(real.count), real.gaussian()
        found = [frechet_distance(target, moments.gaussian()) for moments in self.cells]
        values = {f"{clean}_{count}": found[0]}
        for cell, value in zip(self.grid, found[1:], strict=True):
            values[f"{name}_r{round(100 * cell.rate)}_n{cell.neighbours}_{count}"] = value
        return values | {f"{name}_mean{len(self.grid)}_{count}": sum(found[1:]) / len(self.grid)}

    def states(self) -> list[Metric]:
        return [self.keys, *self.reference.halves, *self.cells]


def perturbed(
    tokens: Tokens, near: list[list[Tensor]], cell: Perturbation, keys: tuple[str, ...], seed: int = 0
) -> Tokens:
    """The tokens with codes moved among their neighbours; what is not sent stays 0.

    near  per grid and codebook, int64 [V, at least the cell's neighbours], nearest first (see `neighbours`)
    """
    generators = [
        torch.Generator().manual_seed((key_hash(key) * 1_000_003 + cell.neighbours * 1009 + seed) % 2**63)
        for key in keys
    ]
    grids = []
    for grid, mask, tables in zip(tokens.grids, tokens.keep, near, strict=True):
        shape = grid.shape[1:]
        moves = torch.stack([torch.rand(shape, generator=g) for g in generators]) < cell.rate
        places = torch.stack([torch.rand(shape, generator=g) for g in generators])
        columns = []
        for k, table in enumerate(tables):
            count = min(cell.neighbours, table.shape[1])
            rank = (places[:, k] * count).long().clamp(max=count - 1) * moves[:, k]
            columns.append(table.to(grid.device)[grid[:, k], rank.to(grid.device)])
        grids.append(torch.stack(columns, 1).masked_fill(~mask, 0))
    return replace(tokens, grids=tuple(grids))


def neighbours(table: Tensor, count: int) -> Tensor:
    """int64 [V, min(count, V)]: the codes nearest to each code of [V, D], itself first."""
    count = min(count, len(table))
    near = nearest_code(table, table, count)[0].view(len(table), count)
    own = torch.arange(len(table), device=near.device)
    # among equal codes the lower number is found first: the code itself must not be lost
    if count > 1:
        lost = near[:, 0] != own
        near[lost, 1:] = torch.where(near[lost, 1:] == own[lost, None], near[lost, :1], near[lost, 1:])
    near[:, 0] = own
    return near


def code_tables(quantizer: Quantizer) -> list[list[Tensor]]:
    """Per grid, per codebook: codes [V, D] as they are compared; ValueError for quantizers without tables."""
    if isinstance(quantizer, VQ):
        return [[quantizer.lookup(quantizer.table()).detach().float()]]
    if isinstance(quantizer, Normalized | Projected):
        return code_tables(quantizer.quantizer)
    if isinstance(quantizer, ScaleResidual):
        return code_tables(quantizer.quantizer) * len(quantizer.codebook_sizes)
    if isinstance(quantizer, Product):
        parts = [code_tables(member) for member in quantizer.members]  # type: ignore[arg-type]
        return [quantizer.joined([part[g] for part in parts], g) for g in range(len(quantizer.codebook_sizes))]
    raise ValueError(f"pfid: {type(quantizer).__name__} has no table of codes whose neighbours could be drawn")
