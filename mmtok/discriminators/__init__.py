"""Networks that tell real media from reconstructions."""

from mmtok.discriminators.base import Panel, Verdict
from mmtok.discriminators.blur_patchgan import BlurPatchGAN
from mmtok.discriminators.patchgan import PatchGAN
from mmtok.discriminators.spectral import BandedSTFT, MultiMagnitude, MultiResolution, MultiScaleSTFT
from mmtok.discriminators.video import PatchGAN3d, PerFrame
from mmtok.discriminators.video_vit import VideoViT
from mmtok.discriminators.waveform import MultiPeriod, MultiScale

__all__ = [
    "BandedSTFT", "BlurPatchGAN", "MultiMagnitude", "MultiPeriod", "MultiResolution", "MultiScale", "MultiScaleSTFT",
    "Panel", "PatchGAN", "PatchGAN3d", "PerFrame", "Verdict", "VideoViT",
]  # fmt: skip
