"""Causal convolutions, norms and wavelets of video against plain torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmtok.nn.attention3d import TimeAttention
from mmtok.nn.conv3d import CausalConv3d, PointConv3d, convolve
from mmtok.nn.haar3d import HaarPatch3d, HaarUnpatch3d
from mmtok.nn.norm3d import ClipNorm, FrameNorm, PositionNorm, SpatialNorm3d
from mmtok.nn.resample3d import DepthToSpace3d, LinearTime, StridedDown
from mmtok.nn.stream import Causal, Stream

KERNELS = {
    "full": {}, "space": {"kernel": (1, 3, 3)}, "time": {"kernel": (3, 1, 1)}, "dilated": {"dilation": 2},
    "down": {"stride": (2, 1, 1)}, "down_alone": {"stride": (2, 2, 2), "first_alone": True},
    "half": {"kernel": (1, 3, 3), "stride": (1, 2, 2)}, "pairs": {"kernel": (2, 1, 1), "stride": (2, 1, 1)},
    "zeros": {"pad_mode": "zeros"}, "point": {"kernel": (1, 1, 1)},
}  # fmt: skip


def in_pieces(module, x, plan):
    stream, parts = Stream(), []
    for index, part in enumerate(x.split(plan, 2)):
        stream = stream.next(index == len(plan) - 1)
        parts.append(module(part, stream) if isinstance(module, Causal) else module(part))
    return torch.cat(parts, 2)


@torch.no_grad()
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_convolution_is_padding_in_front_and_any_pieces(name, layout):
    torch.manual_seed(0)
    args = KERNELS[name]
    module = CausalConv3d(4, 6, **args)
    x = torch.randn(2, 4, 9, 8, 6).contiguous(memory_format=layout)
    (k, kh, kw), (s, sh, sw) = args.get("kernel", (3, 3, 3)), args.get("stride", (1, 1, 1))
    front = (k - 1) * args.get("dilation", 1) + (0 if args.get("first_alone") else 1 - s)
    first = x[:, :, :1].expand(-1, -1, front, -1, -1)
    padded = torch.cat([first * (args.get("pad_mode") != "zeros"), x], 2)
    sides = [n for total in (kw - sw, kh - sh) for n in (total // 2, total - total // 2)]
    conv = module.conv
    expected = F.conv3d(F.pad(padded, [*sides, 0, 0]), conv.weight, conv.bias, (s, sh, sw), 0, conv.dilation)
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    for plan in ([1] * 9, [2, 3, 4], [5, 4], [1, 0, 8]):
        torch.testing.assert_close(in_pieces(module, x, plan), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_layout_is_kept():
    x = torch.randn(2, 4, 3, 8, 6).contiguous(memory_format=torch.channels_last_3d)
    for conv in (PointConv3d(4, 5), CausalConv3d(4, 5, (1, 3, 3)), CausalConv3d(4, 5, (3, 1, 1)), CausalConv3d(4, 5)):
        assert conv(x).is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(convolve(x, conv := nn.Conv3d(4, 5, 1)), conv(x), atol=1e-6, rtol=0)


@torch.no_grad()
def test_norms_see_what_they_say():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 4, 6)
    frame = torch.stack([F.group_norm(x[:, :, t], 2, eps=1e-6) for t in range(5)], 2)
    torch.testing.assert_close(FrameNorm(8, 2)(x), frame, atol=1e-6, rtol=1e-5)
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    torch.testing.assert_close(PositionNorm(8)(x), (x - mean) / (var + 1e-6).sqrt(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ClipNorm(8, 2)(x), F.group_norm(x, 2, eps=1e-6), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="cannot stream"):
        ClipNorm(8, 2)(x, Stream())
    z = torch.randn(2, 3, 3, 2, 3)
    norm = SpatialNorm3d(8, 3, 2)
    near = torch.cat([F.interpolate(z[:, :, :1], (1, 4, 6)), F.interpolate(z[:, :, 1:], (4, 4, 6))], 2)
    expected = F.group_norm(x, 2, eps=1e-6) * norm.scale(near) + norm.shift(near)
    torch.testing.assert_close(norm(x, z), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_wavelets_are_the_orthogonal_transform_and_go_back(patch):
    x = torch.randn(2, 3, 1 + 2 * patch, 2 * patch, 3 * patch)
    y = HaarPatch3d(patch)(x)
    assert y.shape == (2, 3 * patch**3, 3, 2, 3)
    torch.testing.assert_close(HaarUnpatch3d(patch)(y), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(in_pieces(HaarPatch3d(patch), x, [1, patch, patch]), y)
    blocks = x[:, :, 1:].reshape(2, 3, 2, patch, 2, patch, 3, patch)
    torch.testing.assert_close(y[:, :3, 1:], blocks.mean((3, 5, 7)), atol=1e-6, rtol=0)  # the lowest band
    energy = blocks.square().sum((1, 3, 5, 7)) / patch**3
    torch.testing.assert_close(y[:, :, 1:].square().sum(1), energy, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_magvit_resampling_keeps_the_first_frame_single():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 9, 8, 8)
    down, up = StridedDown(4, 2, 2), DepthToSpace3d(4, 2, 2)
    y = down(x)
    assert y.shape == (1, 4, 5, 4, 4) and up(y).shape == x.shape
    torch.testing.assert_close(y[:, :, :1], down(x[:, :, :1]), atol=1e-6, rtol=0)
    for plan in ([1] * 9, [5, 4]):
        torch.testing.assert_close(in_pieces(down, x, plan), y, atol=1e-5, rtol=0)
    for plan in ([1] * 5, [2, 3]):
        torch.testing.assert_close(in_pieces(up, y, plan), up(y), atol=1e-5, rtol=0)
    # channels are (time, row, column, C)
    nn.init.zeros_(up.conv.conv.weight)
    up.conv.conv.bias.copy_(torch.arange(32.0))
    block = up(y)[0, 0, 1:3, :2, :2]
    assert block.flatten().tolist() == [0, 4, 8, 12, 16, 20, 24, 28]


@torch.no_grad()
def test_linear_time_is_torchs_interpolation_in_any_pieces():
    x = torch.randn(1, 2, 11, 3, 3)
    for apart in (1, 2, 4):
        parts = [F.interpolate(p, scale_factor=(2, 1, 1), mode="trilinear") for p in x.split([apart, 11 - apart], 2)]
        module = LinearTime(apart)
        torch.testing.assert_close(module(x), torch.cat(parts, 2), atol=1e-6, rtol=0)
        for plan in ([1] * 11, [1, 3, 7], [11], [4, 0, 7], [10, 1]):
            torch.testing.assert_close(in_pieces(module, x, plan), module(x), atol=1e-6, rtol=0)


@torch.no_grad()
def test_attention_over_time_is_causal_and_windowed():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 10, 2, 3)
    module = TimeAttention(8, FrameNorm, window=4)
    y = module(x)
    torch.testing.assert_close(module(x[:, :, :6]), y[:, :, :6], atol=1e-6, rtol=0)
    assert torch.equal(module(x[:, :, :1]), x[:, :, :1] + module.out(module.v(module.norm(x[:, :, :1]))))
    torch.testing.assert_close(module(x[:, :, 5:])[:, :, 3:], y[:, :, 8:], atol=1e-6, rtol=0)
    for plan in ([1] * 10, [3, 7], [6, 1, 3]):
        torch.testing.assert_close(in_pieces(module, x, plan), y, atol=1e-6, rtol=0)
    endless = TimeAttention(8, FrameNorm, window=None)
    endless.load_state_dict(module.state_dict())
    torch.testing.assert_close(endless(x[:, :, :4]), y[:, :, :4], atol=1e-6, rtol=0)
    assert not torch.allclose(endless(x)[:, :, 9], y[:, :, 9])
