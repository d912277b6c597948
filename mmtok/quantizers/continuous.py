"""Bottlenecks without codes, for ablations: what quantization costs.

Legend: B batch, D channels out, S positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.keep import Shapes
from mmtok.quantizers.base import Quantizer, full_precision
from mmtok.types import Quantized


class Continuous(Quantizer):
    """Base of bottlenecks that send no codes: no grids, so no bits; `decode` is a ValueError."""

    codebook_sizes = ()

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"quantizer.dim must be positive, got {dim}")
        self.dim = dim

    def shapes(self, positions: tuple[int, ...]) -> Shapes:
        return ()

    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        raise ValueError(f"quantizer.decode: {type(self).__name__} is a continuous bottleneck and sends no codes")


class Identity(Continuous):
    """z [B, D, *S] -> z, float32: the plain autoencoder."""

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        return Quantized(z, ())


class Gaussian(Continuous):
    """Diagonal Gaussian (VAE, arXiv 1312.6114): z [B, 2 D, *S], means then log variances -> [B, D, *S].

    Samples in training, returns the mean in eval. Loss `kl`: divergence from the unit Gaussian in nats, summed over an
    item and averaged over the batch (latent diffusion weighs it by 1e-6).

    dim    D of the output
    bound  log variances are clamped to [-30, bound]
    """

    def __init__(self, dim: int, bound: float = 20.0) -> None:
        super().__init__(dim)
        self.bound = bound

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        if z.shape[1] != 2 * self.dim:
            raise ValueError(f"quantizer: Gaussian({self.dim}) needs {2 * self.dim} channels, got {z.shape[1]}")
        mean, log_variance = z.chunk(2, 1)
        log_variance = log_variance.clamp(-30.0, self.bound)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2
        out = mean + (log_variance / 2).exp() * torch.randn_like(mean) if self.training else mean
        return Quantized(out, (), {"kl": kl.mean() if len(kl) else z.sum() * 0})
