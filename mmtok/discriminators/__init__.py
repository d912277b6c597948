"""Networks that tell real media from reconstructions."""

from mmtok.discriminators.blur_patchgan import BlurPatchGAN
from mmtok.discriminators.patchgan import PatchGAN

__all__ = ["BlurPatchGAN", "PatchGAN"]
