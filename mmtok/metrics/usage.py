"""How much of its codebooks a tokenizer uses: counts of codes over the whole set, overall and by position.

Legend: B batch, K codebooks of a grid, S positions of a grid (P of them in all), V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.keep import Shapes
from mmtok.metrics.base import Metric
from mmtok.types import Tokens

MAX_CELLS = 1 << 23  # int64 counts of one table by position: 64 MB


@dataclass(frozen=True)
class CodebookUsage:
    """One codebook over the evaluated set.

    codes           sent codes that were counted
    usage           share of the codebook that occurs, 0..1
    usage_uniform   what `usage` would be on average if codes were drawn uniformly: 1 - (1 - 1/V)^codes
    entropy_bits    entropy of the code histogram; a diagnostic, not a rate (the histogram is not paid for)
    perplexity      2^entropy_bits, 1..V
    bin_size        positions per entry of the two lists below
    position_usage, position_entropy  the same per position, in sending order
    """

    grid: int
    codebook: int
    size: int
    codes: int
    usage: float
    usage_uniform: float
    entropy_bits: float
    perplexity: float
    bin_size: int = 1
    position_usage: tuple[float, ...] = ()
    position_entropy: tuple[float, ...] = ()


class Usage(Metric):
    """Counts of sent codes per codebook, optionally by position (in equal bins when a full table would be too large).

    Create it with `Usage.like(tokens)`: shapes come from the first tokens; all batches must have the same. Counts that
    are not by position take any number of positions (audio of any length).
    """

    def __init__(self, shapes: Shapes, sizes: tuple[tuple[int, ...], ...], by_position: bool) -> None:
        self.shapes, self.sizes, self.by_position = shapes, sizes, by_position
        states: dict[str, Tensor] = {}
        self.bins: list[int] = []
        for index, (shape, books) in enumerate(zip(shapes, sizes, strict=True)):
            positions = int(torch.Size(shape[1:]).numel())
            bins = min(positions, max(1, MAX_CELLS // (len(books) * max(books)))) if by_position else 1
            self.bins.append(-(-positions // bins))  # positions per bin
            count = -(-positions // self.bins[-1])
            states[f"counts{index}"] = torch.zeros(len(books), count, max(books), dtype=torch.int64)
        super().__init__(**states)

    @classmethod
    def like(cls, tokens: Tokens, by_position: bool = False) -> Usage:
        """An empty count for tokens of these shapes and codebooks."""
        return cls(tokens.shapes, tokens.codebook_sizes, by_position)

    def update(self, tokens: Tokens) -> None:
        """Counts the sent codes of a batch."""
        if self.by_position and tokens.shapes != self.shapes:
            raise ValueError(f"usage: token shapes changed from {self.shapes} to {tokens.shapes}; evaluate one size")
        for index, (grid, mask) in enumerate(zip(tokens.grids, tokens.keep, strict=True)):
            counts = self.states[f"counts{index}"]
            books, bins, size = counts.shape
            position = (torch.arange(grid[0, 0].numel(), device=grid.device) // self.bins[index]).clamp(max=bins - 1)
            book = torch.arange(books, device=grid.device)[:, None]
            cell = (book * bins + position) * size + grid.flatten(2)
            sent = mask.expand_as(grid).flatten(2)
            self.add(f"counts{index}", torch.bincount(cell[sent], minlength=counts.numel()).view_as(counts))

    def codebooks(self) -> list[CodebookUsage]:
        """One entry per codebook, in sending order."""
        out = []
        for index, books in enumerate(self.sizes):
            for k, size in enumerate(books):
                table = self.states[f"counts{index}"][k, :, :size]
                counts = table.sum(0)
                bits, codes = float(_entropy(counts)), int(counts.sum())
                places = table if table.shape[0] > 1 else table[:0]
                out.append(CodebookUsage(
                    index, k, size, codes, float((counts > 0).double().mean()), 1 - (1 - 1 / size) ** codes, bits,
                    2**bits, self.bins[index], tuple((places > 0).double().mean(1).tolist()),
                    tuple(_entropy(places).tolist()),
                ))
        return out

    def compute(self) -> dict[str, float]:
        """Means over codebooks."""
        books = self.codebooks()

        def mean(name: str) -> float:
            return sum(getattr(book, name) for book in books) / len(books)

        return {
            "codebook_usage": mean("usage"), "codebook_perplexity": mean("perplexity"),
            "codebook_entropy_bits": mean("entropy_bits"),
        }


def _entropy(counts: Tensor) -> Tensor:
    """float64 [...]: entropy in bits of histograms [..., V]; 0 where nothing was counted."""
    p = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    return -torch.xlogy(p, p).sum(-1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
