"""PSNR and SSIM, and how floats become the 8-bit images that every image metric sees.

Legend: B batch, C channels, H, W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.metrics.base import MeanMetric

ROUNDINGS = ("round", "truncate")


def to_uint8(x: Tensor, rounding: str = "round") -> Tensor:
    """uint8 images from floats in [-1, 1], any shape.

    "round" is exact for stored images and what TiTok, LlamaGen and ADM evaluate. "truncate" (taming, SEED-Voken)
    lowers 63 of the 256 grey levels by one and darkens reconstructions by half a level; only for comparison.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f'rounding: expected one of {", ".join(ROUNDINGS)}, got "{rounding}"')
    x = (x.float().clamp(-1, 1) + 1) * 127.5
    return (x.round() if rounding == "round" else x).to(torch.uint8)


class PSNR(MeanMetric):
    """Mean over images of 10 log10(255^2 / MSE) dB over RGB; equal images count as `CAP` dB.

    This is the convention of codecs and tokenizers; the PSNR of the pooled MSE can be 3 dB lower.
    """

    key = "psnr"
    CAP = 100.0

    def scores(self, real: Tensor, fake: Tensor) -> Tensor:
        check_images(real, fake)
        error = (real.to(torch.int32) - fake.to(torch.int32)).square().flatten(1).sum(1)  # exact below 2^31
        mse = error.cpu().double() / real[0].numel()
        return (10 * torch.log10(255.0**2 / mse)).clamp(max=self.CAP)


class SSIM(MeanMetric):
    """Mean structural similarity: Gaussian 11x11 window of sigma 1.5, K1 .01, K2 .03, data range 255, RGB channels
    averaged, borders where the window does not fit left out (Wang et al. 2004).

    Equals scikit-image with gaussian_weights and population covariance, and torchmetrics' map inside its borders
    (torchmetrics 1.9 averages over mirrored borders as well).
    """

    key = "ssim"
    SIZE, SIGMA, CHUNK = 11, 1.5, 8

    def scores(self, real: Tensor, fake: Tensor) -> Tensor:
        check_images(real, fake)
        if min(real.shape[2:]) < self.SIZE:
            raise ValueError(f"ssim: images must be at least {self.SIZE} pixels a side, got {list(real.shape[2:])}")
        device = "cpu" if real.device.type == "mps" else real.device  # mps has no float64
        pairs = zip(real.to(device).split(self.CHUNK), fake.to(device).split(self.CHUNK), strict=True)
        return torch.cat([self._similarity(x.double(), y.double()) for x, y in pairs])

    def _similarity(self, x: Tensor, y: Tensor) -> Tensor:
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        mean_x, mean_y, xx, yy, xy = self._blur(torch.stack([x, y, x * x, y * y, x * y]))
        product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
        value = (2 * product + c1) * (2 * (xy - product) + c2) / ((squares + c1) * (xx + yy - squares + c2))
        return value.mean((1, 2, 3))

    def _blur(self, x: Tensor) -> Tensor:
        # shifted sums: float64 convolutions have no fast path on a CPU
        distance = torch.arange(self.SIZE, dtype=x.dtype) - self.SIZE // 2
        window = torch.exp(-distance.square() / (2 * self.SIGMA**2))
        weights = (window / window.sum()).tolist()
        for axis in (-1, -2):
            length = x.shape[axis] - self.SIZE + 1
            out = x.narrow(axis, 0, length) * weights[0]
            for shift, weight in enumerate(weights[1:], 1):
                out.add_(x.narrow(axis, shift, length), alpha=weight)
            x = out
        return x


def check_images(real: Tensor, fake: Tensor) -> None:
    """ValueError unless both are uint8 [B, 3, H, W] of one shape."""
    for name, x in (("real", real), ("fake", fake)):
        if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"metrics: {name} must be uint8 [B, 3, H, W], got {x.dtype} {list(x.shape)}")
    if real.shape != fake.shape:
        raise ValueError(f"metrics: real {list(real.shape)} and fake {list(fake.shape)} differ in shape")
