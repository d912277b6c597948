"""Distances in the feature space of frozen image classifiers.

Legend: B batch, H, W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.losses.base import Teacher, Term, reconstruction_of
from mmtok.nn.lpips import LPIPS
from mmtok.types import Batch, Reconstruction
from mmtok.weights import CONVNEXT_SMALL, load_state, require

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]


class Perceptual(Term):
    """Mean LPIPS of images [B, 3, H, W] in [-1, 1]; the gradient flows to the reconstruction only.

    net      "vgg" or "alex"
    weights  where to take the weights from; None searches (see `mmtok.weights`)
    crop     side of a random square that is looked at instead of the whole image: where VGG costs more than the
             tokenizer, half the side is a quarter of the work
    """

    def __init__(self, net: str = "vgg", weights: str | None = None, crop: int | None = None) -> None:
        super().__init__()
        self.lpips = Teacher(LPIPS(net, weights))
        self.crop = crop

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        network: LPIPS = self.lpips.module  # type: ignore[assignment]
        ours, theirs = reconstruction_of(recon, "Perceptual"), batch.x
        if self.crop is not None:
            tops = [int(torch.randint(max(1, n - self.crop + 1), ())) for n in ours.shape[2:]]
            for axis, top in enumerate(tops, 2):
                length = min(self.crop, ours.shape[axis])
                ours, theirs = ours.narrow(axis, top, length), theirs.narrow(axis, top, length)
        with torch.no_grad():
            target = network.features(theirs)
        return network.distance(network.features(ours), target).mean()


class ConvNeXtLogits(Term):
    """Mean squared difference of ConvNeXt-S class logits (MaskBit, arXiv 2409.16211; TiTok stage 2).

    Images [B, 3, H, W] in [-1, 1] are resized to 224 (bilinear, antialiased) and normalised inside.

    weights  file or folder of torchvision's ConvNeXt-Small IMAGENET1K_V1; None searches (see `mmtok.weights`)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        from torchvision.models import convnext_small

        with torch.device("meta"):  # no time is spent on random weights
            network = convnext_small(weights=None)
        network.load_state_dict(load_state(require(CONVNEXT_SMALL, weights)), assign=True)
        self.network = Teacher(network.to(memory_format=torch.channels_last))
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        with torch.no_grad():
            target = self._logits(batch.x)
        return F.mse_loss(self._logits(reconstruction_of(recon, "ConvNeXtLogits")), target)

    def _logits(self, x: Tensor) -> Tensor:
        x = F.interpolate((x.float() + 1) / 2, size=(224, 224), mode="bilinear", antialias=True, align_corners=False)
        return self.network(((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)).float()
