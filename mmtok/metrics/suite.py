"""The image metrics of one evaluation: networks loaded once, one panel of states per candidate (a length, a codec).

Legend: B batch, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mmtok.metrics.base import MeanMetric, Metric
from mmtok.metrics.extractors import Extractor, InceptionFeatures, VGG16Features
from mmtok.metrics.frechet import Gaussian, Moments, ReferenceMoments, count_name, frechet_distance
from mmtok.metrics.inception_score import InceptionScore
from mmtok.metrics.perceptual import LPIPSMetric, ReferenceFeatures
from mmtok.metrics.pixels import PSNR, SSIM
from mmtok.nn.lpips import LPIPS

NAMES = ("psnr", "ssim", "lpips_alex", "lpips_vgg", "fd_vgg16", "rfid")


class Suite:
    """Metrics by name (see `NAMES`) on one device, and the moments of the real images.

    weights  file or folder of third-party weights; None searches (see `mmtok.weights`)
    """

    def __init__(
        self, names: tuple[str, ...], device: torch.device | str = "cpu", weights: str | Path | None = None
    ) -> None:
        unknown = [name for name in names if name not in NAMES]
        if unknown or not names:
            raise ValueError(f"metrics: expected some of {', '.join(NAMES)}, got {', '.join(unknown) or 'none'}")
        self.names = tuple(dict.fromkeys(names))
        self._pixel: list[Callable[[], MeanMetric]] = []
        self.extractors: list[Extractor] = []
        networks: dict[str, LPIPS] = {}

        def network(net: str) -> LPIPS:
            if net not in networks:
                networks[net] = LPIPS(net, weights).to(device)
            return networks[net]

        def lpips(net: str) -> Callable[[], MeanMetric]:
            shared = ReferenceFeatures(network(net))
            return lambda: LPIPSMetric(network(net), shared)

        pixel: dict[str, Callable[[], Callable[[], MeanMetric]]] = {
            "psnr": lambda: PSNR, "ssim": lambda: SSIM,
            "lpips_alex": lambda: lpips("alex"), "lpips_vgg": lambda: lpips("vgg"),
        }
        extractors: dict[str, Callable[[], Extractor]] = {
            "fd_vgg16": lambda: VGG16Features(network("vgg"), device),
            "rfid": lambda: InceptionFeatures.load(weights, device),
        }
        for name in self.names:
            if name in pixel:
                self._pixel.append(pixel[name]())
            else:
                self.extractors.append(extractors[name]())
        self.reference = {extractor.name: ReferenceMoments(extractor.dim) for extractor in self.extractors}
        self._real: dict[str, tuple[int, Gaussian]] = {}

    def panel(self, frechet: bool = True) -> Panel:
        """Fresh states for one candidate; without Frechet distances when `frechet` is false."""
        return Panel([make() for make in self._pixel], self.extractors if frechet else [])

    def see_real(self, real: Tensor, keys: tuple[str, ...]) -> None:
        """Counts a batch of real images (uint8 [B, 3, H, W]) for the Frechet distances, once whatever the lengths."""
        for extractor in self.extractors:
            self.reference[extractor.name].update(extractor(real)[0], keys)

    def states(self) -> list[Metric]:
        """The states of the real images, to be reduced with those of the panels."""
        return [half for reference in self.reference.values() for half in reference.halves]

    def floors(self) -> dict[str, float]:
        """Split-half distances of the real images by key: what a Frechet distance is worth at this count."""
        out = {}
        for name, reference in self.reference.items():
            floor = reference.floor()
            if floor is not None:
                out[f"{name}_{count_name(reference.whole().count)}_floor"] = floor
        return out

    def compute(self, panel: Panel) -> dict[str, float]:
        """All values of a finished panel; no more real images may come after the first call."""
        values = {key: value for metric in panel.means for key, value in metric.compute().items()}
        for name, moments in panel.moments.items():
            if name not in self._real:
                whole = self.reference[name].whole()
                self._real[name] = whole.count, whole.gaussian()
            count, real = self._real[name]
            if count != moments.count:
                raise ValueError(f"{name}: {count} real images but {moments.count} reconstructions")
            values[f"{name}_{count_name(count)}"] = frechet_distance(real, moments.gaussian())
        for score in panel.scores.values():
            values |= score.compute()
        return values


class Panel:
    """States of one candidate."""

    def __init__(self, means: list[MeanMetric], extractors: list[Extractor]) -> None:
        self.means, self.extractors = means, extractors
        self.moments = {extractor.name: Moments(extractor.dim) for extractor in extractors}
        self.scores = {extractor.name: InceptionScore() for extractor in extractors if extractor.logits}

    def update(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Counts uint8 images [B, 3, H, W]; returns the per-image metrics, float64 [B] by key."""
        out = {metric.key: metric.update(real, fake) for metric in self.means}
        for extractor in self.extractors:
            features, logits = extractor(fake)
            self.moments[extractor.name].update(features)
            if logits is not None:
                self.scores[extractor.name].update(logits)
        return out

    def states(self) -> list[Metric]:
        return [*self.means, *self.moments.values(), *self.scores.values()]
