"""LPIPS as a metric: the network is named in the key, because "alex" and "vgg" numbers are not comparable."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.metrics.base import MeanMetric
from mmtok.metrics.pixels import check_images
from mmtok.nn.lpips import LPIPS


class LPIPSMetric(MeanMetric):
    """Mean LPIPS v0.1 over images, key `lpips_alex` or `lpips_vgg`, float32 whatever the autocast state.

    The network may be shared between metrics (one per length): it holds no state. Features of the reference are kept
    while the same tensor comes again, so that evaluating many lengths pays for them once.
    """

    def __init__(self, network: LPIPS, reference: ReferenceFeatures | None = None) -> None:
        super().__init__()
        self.network = network
        self.reference = reference if reference is not None else ReferenceFeatures(network)
        self.key = f"lpips_{network.net}"

    @torch.no_grad()
    def scores(self, real: Tensor, fake: Tensor) -> Tensor:
        check_images(real, fake)
        with torch.autocast(real.device.type, enabled=False):
            return self.network.distance(self.reference(real), self.network.features(to_signed(fake)))


class ReferenceFeatures:
    """LPIPS features of the last reference batch it was asked for, shared by the metrics of all lengths."""

    def __init__(self, network: LPIPS) -> None:
        self.network = network
        self._batch: Tensor | None = None
        self._features: list[Tensor] = []

    def __call__(self, real: Tensor) -> list[Tensor]:
        if self._batch is not real:  # the tensor itself is held, so identity cannot be reused by another
            self._batch, self._features = real, self.network.features(to_signed(real))
        return self._features


def to_signed(x: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return x.float() / 127.5 - 1
