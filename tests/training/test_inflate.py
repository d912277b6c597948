"""An inflated video tokenizer codes a picture, and every frame of a video, as the image tokenizer does."""

import functools

import pytest
import torch
from torch import nn

from mmtok.hub import build, load, save
from mmtok.models.image.conv import ConvTokenizer
from mmtok.models.video.conv import ConvVideoTokenizer
from mmtok.nn.conv2d import ConvDecoder2d, ConvEncoder2d
from mmtok.nn.conv3d import CausalConv3d
from mmtok.nn.conv_video import ConvDecoder3d, ConvEncoder3d, Parts3d, ResBlock3d
from mmtok.nn.magvit2d import DepthToSpace2d, SymmetricConv2d
from mmtok.nn.norm3d import FrameNorm
from mmtok.nn.resample3d import DepthToSpace3d, StridedDown
from mmtok.nn.video_parts import CosmosParts
from mmtok.quantizers.fsq import FSQ
from mmtok.training.inflate import inflate, main

MULT = (1, 1, 2)


class Plain3d(Parts3d):
    """The image networks with full 3D convolutions and norms a frame."""

    def __init__(self, pad_mode):
        self.pad_mode = pad_mode
        self.conv3 = functools.partial(CausalConv3d, pad_mode=pad_mode)

    def stem(self, time):
        return nn.Identity()

    head = stem

    def conv(self, a, b):
        return self.conv3(a, b)

    def norm(self, channels):
        return FrameNorm(channels, 4)

    def block(self, a, b):
        return ResBlock3d(a, b, self.conv3, self.norm)

    def middle(self, channels):
        return [self.block(channels, channels)]

    def down(self, channels, time, space):
        return StridedDown(channels, time, space, pad_mode=self.pad_mode)

    def up(self, channels, time, space, index):
        return DepthToSpace3d(channels, time, space, pad_mode=self.pad_mode)


def image_model():
    torch.manual_seed(0)
    sizes = {"z_channels": 3, "channels": 8, "channel_mult": MULT, "mid_blocks": 1, "mid_attention": False, "groups": 4}
    encoder = ConvEncoder2d(**sizes, num_res_blocks=1, downsample=SymmetricConv2d)
    decoder = ConvDecoder2d(**sizes, num_res_blocks=2, upsample=DepthToSpace2d)
    return ConvTokenizer(encoder, FSQ([8, 8, 5]), decoder, (16, 16)).eval()


def video_model(pad_mode):
    torch.manual_seed(1)
    parts, strides = Plain3d(pad_mode), [(2, 2), (2, 2)]
    encoder = ConvEncoder3d(parts, 3, 8, MULT, 1, strides)
    decoder = ConvDecoder3d(parts, 3, 8, MULT, 2, strides)
    return ConvVideoTokenizer(encoder, FSQ([8, 8, 5]), decoder, (9, 16, 16), quant_conv=True).eval()


@torch.no_grad()
def test_last_slice_codes_frames_as_images():
    image, video = image_model(), video_model("zeros")
    assert inflate(image, video) == []
    x = torch.rand(2, 3, 9, 16, 16) * 2 - 1
    z = video.latents(x)
    for latent, frame in enumerate((0, 4, 8)):
        torch.testing.assert_close(z[:, :, latent], image.latents(x[:, :, frame]), atol=1e-5, rtol=0)
    tokens, alone = video.encode(x), image.encode(x[:, :, 0])
    assert torch.equal(tokens.codes[:, :, 0], alone.codes)
    recon = video.decode(tokens)
    torch.testing.assert_close(recon[:, :, 0], image.decode(alone), atol=1e-5, rtol=0)
    torch.testing.assert_close(recon[:, :, 1], recon[:, :, 4], atol=1e-5, rtol=0)  # frames of one latent are alike


@torch.no_grad()
def test_average_codes_a_still_picture_alike():
    image, video = image_model(), video_model("first_frame")
    inflate(image, video, average=True)
    x = (torch.rand(1, 3, 1, 16, 16) * 2 - 1).expand(-1, -1, 9, -1, -1)
    z = video.latents(x)
    expected = image.latents(x[:, :, 0])[:, :, None].expand_as(z)
    torch.testing.assert_close(z, expected, atol=1e-5, rtol=0)


SIDE = {
    "parts": {"class_path": "mmtok.nn.video_parts.CosmosParts", "init_args": {"patch": 1}},
    "z_channels": 3, "channels": 8, "channel_mult": list(MULT), "num_res_blocks": 1, "strides": [[2, 2], [2, 2]],
}  # fmt: skip
FLAT = {"z_channels": 3, "channels": 8, "channel_mult": list(MULT), "num_res_blocks": 1, "groups": 4}
LEVELS = {"class_path": "mmtok.quantizers.fsq.FSQ", "init_args": {"levels": [8, 8, 5]}}


def config(family, nets, args, **more):
    sides = {
        side: {"class_path": nets.format(side.capitalize()), "init_args": args} for side in ("encoder", "decoder")
    }  # fmt: skip
    return {"class_path": family, "init_args": sides | {"quantizer": LEVELS} | more}


def test_factorised_convolutions_and_the_command(tmp_path):
    """Kernels over space are taken, kernels over time let the present frame through; the folder loads."""
    flat = config("mmtok.models.image.conv.ConvTokenizer", "mmtok.nn.conv2d.Conv{}2d", FLAT)
    deep = config("mmtok.models.video.conv.ConvVideoTokenizer", "mmtok.nn.conv_video.Conv{}3d", SIDE, quant_conv=True)
    save(build(flat), tmp_path / "image")
    save(build(deep), tmp_path / "video")
    main([str(tmp_path / name) for name in ("image", "video", "out")])
    image, video = load(tmp_path / "image"), load(tmp_path / "out")
    conv = video.encoder.levels[0].blocks[0].conv1
    assert torch.equal(conv.space.conv.weight[:, :, 0], image.encoder.levels[0].blocks[0].conv1.weight)
    x = torch.randn(1, 8, 3, 4, 4)
    torch.testing.assert_close(conv.time(x), x)


def test_nothing_in_common_is_an_error():
    with pytest.raises(ValueError, match="no weight of the image tokenizer"):
        inflate(nn.Linear(2, 2), ConvEncoder3d(CosmosParts(1), 3, 8, MULT, 1, []))
