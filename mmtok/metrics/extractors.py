"""Feature networks of the Frechet distance. Each carries the name under which its distance may be reported.

Legend: B batch, D features, H, W pixels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from mmtok.metrics.perceptual import to_signed
from mmtok.nn.lpips import LPIPS
from mmtok.weights import INCEPTION_FID, load_state, require

INCEPTION_SHA256 = INCEPTION_FID.name.rsplit("-", 1)[1].removesuffix(".pth")  # PyTorch names files by their hash


class Extractor(Protocol):
    """name: prefix of the reported key; dim: D; logits: class logits come too."""

    name: str
    dim: int
    logits: bool

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """float32 features [B, D] and logits [B, classes] (or None) of uint8 [B, 3, H, W]."""


class InceptionFeatures:
    """Pool3 (2048) and unbiased logits of the TensorFlow Inception-v3 of 2015-12-05, by torch-fidelity.

    Only `load` may call itself "rfid": it takes the published file alone. Other weights (tests) get another name.
    """

    dim, logits = 2048, True

    def __init__(self, weights: Path, name: str, device: torch.device | str = "cpu") -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise ValueError('metrics: rfid needs torch-fidelity: pip install "mmtok[train]"') from None
        load_state(weights)  # refuses anything but tensors, before torch-fidelity unpickles the file
        features = ["2048", "logits_unbiased"]
        self.network = FeatureExtractorInceptionV3(name, features, feature_extractor_weights_path=str(weights))
        self.network.to(device)
        self.name = name

    @classmethod
    def load(cls, path: str | Path | None = None, device: torch.device | str = "cpu") -> InceptionFeatures:
        """The real network, found by `mmtok.weights`; ValueError says which file is missing and where it belongs."""
        found = require(INCEPTION_FID, path, hint="; without it, use fd_vgg16, which is another metric")
        digest = hashlib.sha256(found.read_bytes()).hexdigest()
        if not digest.startswith(INCEPTION_SHA256):
            raise ValueError(
                f"weights: {found} is not {INCEPTION_FID.name} (sha256 {digest[:8]}..., expected"
                f" {INCEPTION_SHA256}...): an rfid with other weights would be another metric"
            )
        return cls(found, "rfid", device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(images.device.type, enabled=False), _full_float32():
            features, logits = self.network(images)
        return features, logits


class VGG16Features:
    """Mean over positions of relu5_3 of the ImageNet VGG16 (512): the stand-in that works offline, `fd_vgg16`.

    Images enter at their own size with LPIPS's normalisation (ImageNet's). Not comparable to an FID.
    """

    name, dim, logits = "fd_vgg16", 512, False

    def __init__(self, network: LPIPS | None = None, device: torch.device | str = "cpu") -> None:
        network = (network if network is not None else LPIPS("vgg")).to(device)
        self.stages = nn.Sequential(*network.stages)
        self.shift, self.scale = network.get_buffer("shift"), network.get_buffer("scale")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(images.device.type, enabled=False), _full_float32():
            x = (to_signed(images) - self.shift) / self.scale
            return self.stages(x.contiguous(memory_format=torch.channels_last)).float().mean((2, 3)), None


class _full_float32:
    """TF32 off while features are made: it moves distances in the third digit."""

    def __enter__(self) -> None:
        self.before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *error: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.before
