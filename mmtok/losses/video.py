"""Loss terms of images applied to the frames of a video.

Legend: B batch, T frames, H, W pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mmtok.losses.base import Teacher, Term, reconstruction_of
from mmtok.losses.perceptual import Perceptual
from mmtok.nn.lpips import LPIPS
from mmtok.types import Batch, Reconstruction


class FramePerceptual(Perceptual):
    """Mean LPIPS of frames of videos [B, 3, T, H, W] in [-1, 1].

    frames  how many frames a clip, drawn at random without repetition for the whole batch: VGG on every frame costs
            more than most tokenizers. None takes all of them (VidTok, LARP); 1 is OmniTokenizer's
    net, weights, crop: see `Perceptual`
    """

    def __init__(
        self, net: str = "vgg", weights: str | None = None, crop: int | None = None, frames: int | None = 1
    ) -> None:
        super().__init__(net, weights, crop)
        if frames is not None and frames < 1:
            raise ValueError(f"FramePerceptual.frames must be positive or null, got {frames}")
        self.frames = frames

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        ours, theirs = reconstruction_of(recon, "FramePerceptual"), batch.x
        count = ours.shape[2]
        if self.frames is not None and self.frames < count:
            chosen = torch.randperm(count)[: self.frames].sort().values.to(ours.device)
            ours, theirs = ours.index_select(2, chosen), theirs.index_select(2, chosen)
        return super().forward(replace(recon, x=as_images(ours)), Batch.of(as_images(theirs)), step)


class FrameLikelihood(Term):
    """L1 plus LPIPS of every frame under one learned variance, summed over a frame's values and averaged over frames.

    (|x - y| + LPIPS) / exp(s) + s, s learned (VidTok, after latent diffusion): as the model gets better, the term grows
    against those with fixed weights.

    perceptual    weight of LPIPS inside
    net, weights  see `Perceptual`
    """

    def __init__(self, perceptual: float = 1.0, net: str = "vgg", weights: str | None = None) -> None:
        super().__init__()
        self.perceptual = perceptual
        self.lpips = Teacher(LPIPS(net, weights))
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        ours, theirs = as_images(reconstruction_of(recon, "FrameLikelihood")), as_images(batch.x)
        network: LPIPS = self.lpips.module  # type: ignore[assignment]
        with torch.no_grad():
            target = network.features(theirs)
        seen = network.distance(network.features(ours), target).view(-1, 1, 1, 1)
        error = (ours.float() - theirs.float()).abs() + self.perceptual * seen
        self.stats = {"log_variance": self.log_variance.detach(), "lpips": seen.detach().mean()}
        return (error / self.log_variance.exp() + self.log_variance).sum() / len(ours)


def as_images(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)
