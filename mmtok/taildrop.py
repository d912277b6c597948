"""Tail drop: how many codes are sent, drawn per sample while training so that any prefix decodes.

A policy draws lengths; the `coding` it holds says what a length cuts (the sequence, residual depth, grids, blocks)
and what the length costs in bits. Sources: One-D-Piece (uniform), FlexTok (powers of two), SoundStream (depth).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmtok.keep import KeepCoding, Prefix, Shapes

Length = int | Sequence[int] | Tensor  # one for every block, one a block, or one an item and block


class TailDrop(nn.Module):
    """Base of the policies: draws one length per item and per symbol of `coding`.

    coding      which masks a length stands for (default: a prefix of the last axis)
    min_length  shortest prefix that is drawn or accepted
    per_batch   one length for the whole batch instead of one per item (as One-D-Piece trained)
    """

    def __init__(self, coding: KeepCoding | None = None, min_length: int = 1, per_batch: bool = False) -> None:
        super().__init__()
        if min_length < 1:
            raise ValueError(f"tail.min_length must be at least 1, got {min_length}")
        self.coding = coding if coding is not None else Prefix(-1)
        self.min_length = min_length
        self.per_batch = per_batch

    def lengths(self, batch: int, size: int, generator: torch.Generator | None = None) -> Tensor:
        """int64 [batch] lengths in [min_length, size], on the CPU."""
        raise NotImplementedError

    def sample(
        self, shapes: Shapes, batch: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """One bool mask per grid, drawn from the CPU generator so that it does not depend on the device."""
        rows = 1 if self.per_batch else batch
        columns = [self.lengths(rows, size, generator) for size in self.coding.sizes(shapes)]
        symbols = torch.stack(columns, 1) - 1
        return self.coding.masks(symbols.expand(batch, -1).to(device), shapes)

    def keep(
        self, shapes: Shapes, batch: int, length: Length | None, device: torch.device | str
    ) -> tuple[Tensor, ...]:
        """Masks that send the first `length` (all, when None) of every block; ValueError out of range.

        A list gives every block its own length, int64 [B, blocks] every block of every item.
        """
        sizes = self.coding.sizes(shapes)
        if length is not None and not isinstance(length, int):
            return self._keep_each(shapes, batch, torch.as_tensor(length), device)
        if length is not None and not self.min_length <= length <= max(sizes):
            name = "num_quantizers" if self.coding == Prefix(1) else "num_tokens"
            raise ValueError(f"{name}: this model sends {self.min_length} to {max(sizes)}, got {length}")
        symbols = [min(size, length or size) - 1 for size in sizes]
        return self.coding.masks(torch.tensor(symbols, device=device).expand(batch, -1), shapes)

    def _keep_each(
        self, shapes: Shapes, batch: int, lengths: Tensor, device: torch.device | str
    ) -> tuple[Tensor, ...]:
        sizes = self.coding.sizes(shapes)
        if lengths.shape not in ((len(sizes),), (batch, len(sizes))):
            raise ValueError(f"num_tokens: one length for each of {len(sizes)} blocks, got {list(lengths.shape)}")
        low, high = (int(lengths.amin()), int(lengths.amax())) if lengths.numel() else (self.min_length, 1)
        if low < self.min_length or bool((lengths.cpu() > torch.tensor(sizes, dtype=torch.int64)).any()):
            span = f"{self.min_length} to {max(sizes)}"
            raise ValueError(f"num_tokens: this model sends {span} a block, got {low}..{high}")
        return self.coding.masks((lengths.to(device) - 1).expand(batch, -1), shapes)


class UniformTail(TailDrop):
    """k ~ U{min_length..L} (One-D-Piece, arXiv 2501.10064)."""

    def lengths(self, batch: int, size: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(min(self.min_length, size), size + 1, (batch,), generator=generator)


class PowerOfTwoTail(TailDrop):
    """k uniform over {1, 2, 4, ...} up to L, L itself included (FlexTok, arXiv 2502.13967)."""

    def lengths(self, batch: int, size: int, generator: torch.Generator | None = None) -> Tensor:
        choices = [1 << n for n in range(size.bit_length()) if self.min_length <= 1 << n < size] + [size]
        return torch.tensor(choices)[torch.randint(len(choices), (batch,), generator=generator)]


class TruncatedNormalTail(TailDrop):
    """k ~ N(mean * L, (std * L)^2), redrawn until it lies in [min_length, L] (by inverse CDF, rounded).

    mean and std are fractions of the full length.
    """

    def __init__(
        self, mean: float = 0.5, std: float = 0.25, coding: KeepCoding | None = None, min_length: int = 1,
        per_batch: bool = False,
    ) -> None:
        super().__init__(coding, min_length, per_batch)
        if std <= 0:
            raise ValueError(f"tail.std must be positive, got {std}")
        self.mean, self.std = mean, std

    def lengths(self, batch: int, size: int, generator: torch.Generator | None = None) -> Tensor:
        low = min(self.min_length, size)
        bounds = (torch.tensor([low - 0.5, size + 0.5], dtype=torch.float64) / size - self.mean) / self.std
        below, above = torch.special.ndtr(bounds).tolist()
        u = torch.rand(batch, generator=generator, dtype=torch.float64) * (above - below) + below
        drawn = (torch.special.ndtri(u) * self.std + self.mean) * size
        return drawn.round().to(torch.int64).clamp(low, size)


class ChoiceTail(TailDrop):
    """k uniform over a list, e.g. the codebooks of EnCodec's bandwidths [2, 4, 8, 16, 32], one for the whole batch.

    Any length from min_length on is accepted by `encode`, listed or not.
    """

    def __init__(
        self, choices: list[int], coding: KeepCoding | None = None, min_length: int = 1, per_batch: bool = False
    ) -> None:
        super().__init__(coding, min_length, per_batch)
        if not choices or min(choices) < min_length:
            raise ValueError(f"tail.choices: lengths of at least {min_length}, got {choices}")
        self.choices = list(choices)

    def lengths(self, batch: int, size: int, generator: torch.Generator | None = None) -> Tensor:
        choices = torch.tensor([min(choice, size) for choice in self.choices])
        return choices[torch.randint(len(choices), (batch,), generator=generator)]


class PartialTail(TailDrop):
    """The first floor(B * share) items get k ~ U{min_length..L}, the others everything (DAC, arXiv 2306.06546).

    share  0.5 in DAC's released models, 1.0 in its base recipe
    """

    def __init__(
        self, share: float = 0.5, coding: KeepCoding | None = None, min_length: int = 1, per_batch: bool = False
    ) -> None:
        super().__init__(coding, min_length, per_batch)
        if not 0 <= share <= 1:
            raise ValueError(f"tail.share must lie in [0, 1], got {share}")
        self.share = share

    def lengths(self, batch: int, size: int, generator: torch.Generator | None = None) -> Tensor:
        drawn = torch.randint(min(self.min_length, size), size + 1, (batch,), generator=generator)
        return torch.where(torch.arange(batch) < int(batch * self.share), drawn, size)
