"""How long each block of a video is: targets a user may ask for, and policies that meet them block by block.

Legend: B batch, t blocks, n candidate lengths.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class PSNR:
    """Every block as short as reaches `db` decibels (of media in [-1, 1], peak 2).

    exact  decodes every candidate length and measures it, instead of asking the scorer: slow
    """

    db: float
    exact: bool = False


@dataclass(frozen=True)
class BPP:
    """At no time more bits were sent, side information included, than `rate` bits a pixel of every frame so far."""

    rate: float
    exact: bool = False


Target = PSNR | BPP


def read_target(target: Target | float | str) -> Target:
    """PSNR or BPP from a number (decibels) or a text: "32dB", "0.02bpp"; "exact" behind it searches."""
    if isinstance(target, (PSNR, BPP)):
        return target
    found = re.fullmatch(r"\s*([\d.]+)\s*(db|bpp)?\s*(exact)?\s*", str(target).lower())
    if found is None:
        raise ValueError(f'target: give decibels, "32dB" or "0.02bpp", got {target!r}')
    kind = BPP if found[2] == "bpp" else PSNR
    return kind(float(found[1]), found[3] is not None)


def choices(shortest: int, full: int, step: int) -> list[int]:
    """Candidate lengths: multiples of `step` from `shortest` on, and the full length."""
    return sorted({n for n in range(step, full, step) if n >= shortest} | {full})


@dataclass(frozen=True)
class BlockPolicy:
    """Chooses the length of the next block from its predicted quality; looks at no later block.

    With a PSNR target the first length that reaches it. With a BPP target the first that reaches the running mean of
    the quality the even share would have given, as far as bits were saved: constant quality, never over the rate.

    lengths   candidates, rising; least: length that is sent when even the first does not fit
    code_bits bits of one unit of length (all tiles); block_bits: fixed cost of a block (its length)
    frames    frames of a block; pixels: of a frame
    """

    target: Target
    lengths: tuple[int, ...]
    least: int
    code_bits: float
    block_bits: float
    frames: int
    pixels: int
    credit: Tensor | None = field(default=None)
    level: Tensor | None = field(default=None)
    pace: float = 0.2

    def choose(self, quality: Tensor, frames: float | None = None) -> tuple[Tensor, BlockPolicy]:
        """quality [B, n] of each candidate, higher is better -> int64 [B] lengths, policy for the next block.

        frames  of the last block, where the video ends inside it: it earns less, and sends at least `least`
        """
        quality = quality.float().cummax(1).values
        table = torch.tensor(self.lengths, device=quality.device)
        if isinstance(self.target, PSNR):
            return table[first_at_least(quality, torch.full_like(quality[:, 0], self.target.db))], self
        area = (self.frames if frames is None else frames) * self.pixels
        income = self.target.rate * area - self.block_bits
        if self.credit is None:
            self.check(self.frames if frames is None else frames)
        credit = torch.full((len(quality),), income, dtype=torch.float64, device=quality.device)
        credit = credit if self.credit is None else credit + self.credit
        even = quality.gather(1, self._fits(torch.full_like(credit, income), table)[:, None])[:, 0]
        level = even if self.level is None else self.level + self.pace * (even - self.level)
        index = torch.minimum(first_at_least(quality, level), self._fits(credit, table))
        length = torch.where(table[index] * self.code_bits <= credit, table[index], self.least)
        rest = credit - length * self.code_bits
        return length, BlockPolicy(
            self.target, self.lengths, self.least, self.code_bits, self.block_bits, self.frames, self.pixels, rest,
            level, self.pace,
        )

    def check(self, frames: float) -> None:
        """ValueError when blocks of so many frames cannot have the rate that is wanted, however short they are."""
        shortest = self.least * self.code_bits + self.block_bits
        if isinstance(self.target, BPP) and self.target.rate * frames * self.pixels < shortest:
            lowest = shortest / (frames * self.pixels)
            raise ValueError(f"target: {self.target.rate} bpp is less than the shortest blocks cost, {lowest:.5f} bpp")

    def _fits(self, bits: Tensor, table: Tensor) -> Tensor:
        """int64 [B]: index of the longest candidate that costs at most `bits` (0 when none does)."""
        return ((table * self.code_bits <= bits[:, None]).sum(1) - 1).clamp(min=0)


def first_at_least(quality: Tensor, level: Tensor) -> Tensor:
    """int64 [B]: index of the first quality [B, n] that reaches level [B]; the last when none does."""
    reached = quality >= level[:, None]
    return torch.where(reached.any(1), reached.to(torch.int8).argmax(1), quality.shape[1] - 1)


def search_psnr(
    measure: Callable[[int, int, Tensor], Tensor], blocks: int, lengths: list[int], level: Tensor
) -> Tensor:
    """int64 [B, blocks]: block after block the shortest candidate whose measured PSNR reaches level [B].

    measure  (block, candidate, int64 [B, block] lengths chosen before) -> dB [B] of that block
    """
    chosen = torch.zeros(len(level), 0, dtype=torch.int64, device=level.device)
    for block in range(blocks):
        best = torch.full_like(level, lengths[-1], dtype=torch.int64)
        open_ = torch.ones_like(best, dtype=torch.bool)
        for length in lengths[:-1]:
            hit = open_ & (measure(block, length, chosen) >= level)
            best = torch.where(hit, length, best)
            open_ = open_ & ~hit
            if not bool(open_.any()):
                break
        chosen = torch.cat([chosen, best[:, None]], 1)
    return chosen


def search_rate(
    measure: Callable[[int, int, Tensor], Tensor], blocks: int, lengths: list[int], most: Tensor, rounds: int = 8
) -> Tensor:
    """int64 [B, blocks]: of searches for one PSNR in all blocks the best whose lengths sum up to at most `most` [B].

    The level is bisected between 0 and 60 dB; the shortest candidate everywhere when nothing fits.
    """
    low, high = torch.zeros(len(most), device=most.device), torch.full((len(most),), 60.0, device=most.device)
    best = torch.full((len(most), blocks), lengths[0], dtype=torch.int64, device=most.device)
    for _ in range(rounds):
        level = (low + high) / 2
        found = search_psnr(measure, blocks, lengths, level)
        fits = found.sum(1) <= most
        better = fits & (found.sum(1) >= best.sum(1))
        best = torch.where(better[:, None], found, best)
        low, high = torch.where(fits, level, low), torch.where(fits, high, level)
    return best


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """dB [B] of x against y, float [B, ...] in [-1, 1]; y is clamped as `decode` does."""
    error = (x - y.clamp(-1, 1)).float().square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))
