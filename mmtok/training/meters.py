"""What training measures about itself: speed, waiting for data, and codebook usage over a window of steps.

Legend: K codebooks, V codes.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor

from mmtok.types import Tokens


class SpeedMeter:
    """Samples per second and the share of time the loop waited for data, over the time between two readings."""

    def __init__(self) -> None:
        self.samples, self.waited = 0, 0.0
        self.since = self.ended = time.perf_counter()

    def batch_begins(self) -> None:
        self.waited += time.perf_counter() - self.ended

    def batch_ends(self, samples: int) -> None:
        self.samples += samples
        self.ended = time.perf_counter()

    def read(self, world: int = 1) -> dict[str, float]:
        """Values since the last reading (or `restart`); the speed is that of all `world` processes together."""
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        speed = world * self.samples / elapsed
        values = {"perf/samples_per_second": speed, "perf/data_wait": min(1.0, self.waited / elapsed)}
        self.restart()
        return values | memory()

    def restart(self) -> None:
        """Forgets the past, for instance a validation."""
        self.samples, self.waited = 0, 0.0
        self.since = self.ended = time.perf_counter()


def memory() -> dict[str, float]:
    """GB of this process: resident now, and the peak of its CUDA device since the last call."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        values = {"perf/memory_gb": pages * os.sysconf("SC_PAGE_SIZE") / 1e9}
    except (OSError, ValueError, IndexError):  # no /proc: not Linux
        values = {}
    if torch.cuda.is_available():
        values["perf/gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
    return values


class UsageMeter:
    """Usage (share of codes hit), perplexity and share of sent codes over all steps since the last reading."""

    def __init__(self) -> None:
        self.counts: list[Tensor] = []
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def update(self, tokens: Tokens) -> None:
        """Counts the codes that are sent; stays on the device."""
        books = [size for sizes in tokens.codebook_sizes for size in sizes]
        if not self.counts:
            self.counts = [torch.zeros(size, device=tokens.grids[0].device) for size in books]
        sent = sum(mask.expand_as(grid).sum() for grid, mask in zip(tokens.grids, tokens.keep, strict=True))
        self.kept.append(sent / sum(grid.numel() for grid in tokens.grids))  # type: ignore[arg-type]
        index = 0
        for grid, mask in zip(tokens.grids, tokens.keep, strict=True):
            kept = mask.expand_as(grid)
            for k in range(grid.shape[1]):
                # weights instead of a boolean index: its size would have to travel to the CPU at every step
                codes, weight = grid[:, k].flatten(), kept[:, k].flatten().to(self.counts[index].dtype)
                self.counts[index].scatter_add_(0, codes, weight)
                index += 1

    def read(self) -> dict[str, Tensor]:
        """Detached scalars: means over codebooks, usage of the last one (under depth drop the least trained), and the
        share of codes that tail drop left; empty when nothing was counted."""
        if not self.counts:
            return {}
        usage, perplexity = [], []
        for counts in self.counts:
            p = counts / counts.sum().clamp(min=1)
            usage.append((counts > 0).float().mean())
            perplexity.append((-(p * p.clamp(min=1e-12).log()).sum()).exp())
        kept = torch.stack(self.kept).mean()
        self.counts, self.kept = [], []
        return {
            "code/window_kept": kept, "code/window_usage": torch.stack(usage).mean(),
            "code/window_perplexity": torch.stack(perplexity).mean(), "code/window_last_usage": usage[-1],
        }  # fmt: skip
