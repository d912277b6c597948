"""What a clip costs, in bits per pixel of every frame and in kilobits per second; and how neighbouring frames differ.

Legend: T frames, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.metrics.base import MeanMetric
from mmtok.metrics.pixels import PSNR, check_images
from mmtok.metrics.rate import FileSizes, Rate
from mmtok.types import Tokens


class VideoRate(Rate):
    """`Rate`, whose pixels are those of all frames, and kbps_nominal, kbps_entropy, kbps_file over all seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.states["seconds"] = torch.zeros(1, dtype=torch.float64)

    def update(self, tokens: Tokens) -> Tensor:
        """Counts a batch; returns the file bytes of every clip, int64 [B]. ValueError when tokens state no rate."""
        if tokens.rate is None:
            raise ValueError("rate: these tokens state no frames per second, so they have no kbps")
        self.add("seconds", (tokens.size[:, 0].double().cpu() / tokens.rate.cpu()).sum().view(1))
        return super().update(tokens)

    def compute(self) -> dict[str, float]:
        out = super().compute()
        seconds, count = float(self.states["seconds"]), float(self.states["count"])
        bits = {"nominal": out["bits_nominal"], "file": 8 * out["bytes_file"], "entropy": out.get("bits_entropy")}
        scale = count / seconds / 1000
        return out | {f"kbps_{name}": value * scale for name, value in bits.items() if value is not None}


class ClipSizes(FileSizes):
    """`FileSizes` of clips, with kbps_file."""

    def __init__(self) -> None:
        super().__init__()
        self.states["seconds"] = torch.zeros(1, dtype=torch.float64)

    def count_clip(self, size: int, clip: Tensor, rate: float) -> None:
        """Counts the file of one uint8 clip [3, T, H, W]."""
        values = {"count": 1, "bytes": size, "pixels": clip[0].numel(), "seconds": clip.shape[1] / rate}
        for name, value in values.items():
            self.add(name, torch.tensor([value]))

    def compute(self) -> dict[str, float]:
        total = 8 * float(self.states["bytes"]) / 1000
        return super().compute() | {"kbps_file": total / float(self.states["seconds"])}


class FlickerPSNR(MeanMetric):
    """Mean over pairs of neighbouring frames of the PSNR of their difference image: what trembles lowers it, a constant
    error does not. Data range 255, RGB, capped at 100 dB.
    """

    key = "flicker_psnr"

    def scores(self, real: Tensor, fake: Tensor) -> Tensor:
        """float64 [T - 1] of the frames uint8 [T, 3, H, W] of one clip."""
        check_images(real, fake)
        error = (real.to(torch.int32) - fake.to(torch.int32)).diff(dim=0).square().flatten(1).sum(1).cpu().double()
        return (10 * torch.log10(255.0**2 * real[0].numel() / error)).clamp(max=PSNR.CAP)
