"""Small convolutional video tokenizers with random weights, and clips."""

import torch
from torch import nn

from mmtok.models.video.conv import ConvVideoTokenizer
from mmtok.nn.conv_video import ConvDecoder3d, ConvEncoder3d
from mmtok.nn.thumbnail3d import ThumbnailDecoder3d, ThumbnailEncoder3d
from mmtok.nn.video_parts import CosmosParts, LightParts, VidTokParts
from mmtok.quantizers.fsq import FSQ

VIDTOK = {"488": [(1, 2), (2, 2), (2, 2)], "888": [(2, 2)] * 3}
MULT = (1, 1, 2, 2)


def randomise(module):
    """Blocks that start as the identity hide errors: random weights everywhere."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, 0, 0.02)
        elif name.endswith("mix"):
            nn.init.constant_(parameter, 0.3)
    return module


def make(parts, down, up, mult=MULT, quant_conv=True, **named):
    torch.manual_seed(0)
    encoder = ConvEncoder3d(parts, 4, 16, mult, 1, down)
    decoder = ConvDecoder3d(parts, 4, 16, mult, 2, up)
    model = ConvVideoTokenizer(encoder, FSQ([8, 8, 5]), decoder, (9, 32, 32), quant_conv=quant_conv, **named)
    return randomise(model).eval()


def thumbnail(**named):
    torch.manual_seed(0)
    encoder = ThumbnailEncoder3d(ConvEncoder3d(LightParts(time_window=3), 5, 16, (1, 2), 1, [(1, 2)]))
    decoder = ThumbnailDecoder3d(ConvDecoder3d(LightParts(time_window=3), 9, 16, (1, 2), 1, [(1, 2)]))
    model = ConvVideoTokenizer(encoder, FSQ([5] * 8), decoder, (9, 32, 32), show_depth=True, **named)
    return randomise(model).eval()


MODELS = {
    "vidtok_488": lambda **kw: make(VidTokParts(), VIDTOK["488"], VIDTOK["488"], **kw),
    "vidtok_488_zeros": lambda **kw: make(VidTokParts("zeros"), VIDTOK["488"], VIDTOK["488"], **kw),
    "vidtok_888": lambda **kw: make(VidTokParts(), VIDTOK["888"], VIDTOK["888"], **kw),
    "vidtok_look_ahead": lambda **kw: make(VidTokParts(look_ahead=True), VIDTOK["488"], VIDTOK["488"], **kw),
    "cosmos_488": lambda **kw: make(CosmosParts(2, time_window=4), [(2, 2), (1, 2)], [(1, 2), (2, 2)], (1, 2, 2), **kw),
    "cosmos_888": lambda **kw: make(CosmosParts(4, time_window=3), [(2, 2), (1, 1)], [(1, 1), (2, 2)], (1, 2, 2), **kw),
    "thumbnail": thumbnail,
}  # fmt: skip


def video(frames, height=16, width=16, batch=1, seed=1):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
