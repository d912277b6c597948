"""Convolutions with weights laid out beforehand: the numbers of the plain ones, whatever happens to their weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmtok.nn.conv3d import PackedConv3d, convolve
from mmtok.nn.packed import Packed2d, as_plane, packable
from mmtok.nn.stream import Stream

KINDS = [
    ((1, 3, 3), (1, 1, 1), (0, 1, 1), 1), ((1, 3, 3), (1, 2, 2), (0, 0, 0), 1), ((3, 1, 1), (1, 1, 1), (0, 0, 0), 1),
    ((3, 1, 1), (2, 1, 1), (0, 0, 0), 1), ((3, 1, 1), (1, 1, 1), (0, 0, 0), 2), ((1, 1, 1), (1, 1, 1), (0, 0, 0), 1),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_packed_equals_plain_for_every_size(kind, bias, dtype):
    if dtype not in packable():
        pytest.skip("no bfloat16 on this CPU")
    kernel, stride, padding, dilation = kind
    conv = nn.Conv3d(24, 40, kernel, stride, padding, (dilation, 1, 1), bias=bias).to(dtype)
    packed, stream = PackedConv3d(conv), Stream()
    assert packed.state_dict().keys() == conv.state_dict().keys()
    for size in ((5, 8, 6), (7, 8, 6), (5, 8, 6), (5, 1, 1), (6, 9, 3)):
        if min(size[1:]) < kernel[1] - 2 * padding[1]:
            continue
        x = torch.randn(2, 24, *size).to(dtype)
        plain = convolve(x, conv)
        assert torch.equal(convolve(x, packed), plain) and torch.equal(convolve(x, conv, stream), plain)
        torch.testing.assert_close(plain, conv(x), atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0)
        assert torch.equal(convolve(x.contiguous(memory_format=torch.channels_last_3d), conv), plain)


def test_kept_weights_follow_those_of_the_module():
    conv, stream, x = nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1)), Stream(), torch.randn(1, 8, 2, 5, 5)

    def changed():
        with torch.no_grad():
            new = convolve(x, conv, stream)
            torch.testing.assert_close(new, conv(x), atol=1e-5, rtol=1e-4)
        return new

    seen = [changed()]
    with torch.no_grad():
        conv.weight.mul_(2)
    seen.append(changed())
    conv.weight = nn.Parameter(torch.randn_like(conv.weight))
    seen.append(changed())
    conv.bias = nn.Parameter(conv.bias.detach() + 1)
    seen.append(changed())
    torch.optim.SGD(conv.parameters(), lr=0.1).step(lambda: conv(x).square().sum().backward())
    seen.append(changed())
    assert all(not torch.allclose(a, b) for a, b in zip(seen, seen[1:], strict=False))
    other = copy.deepcopy(conv)
    with torch.no_grad():
        other.weight.zero_()
        assert not torch.allclose(convolve(x, other, stream), seen[-1])
        assert torch.equal(convolve(x, conv, stream), seen[-1])


@torch.no_grad()
def test_two_sizes_are_remembered(monkeypatch):
    made = []
    pack = Packed2d.pack
    monkeypatch.setattr(Packed2d, "pack", lambda self, size: made.append(tuple(size)[0]) or pack(self, size))
    conv = PackedConv3d(nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1)))
    for frames in (1, 2, 1, 2, 3, 2, 1):
        convolve(torch.randn(1, 4, frames, 5, 5), conv)
    assert made == [1, 2, 3, 1]
    conv.weight.mul_(2)
    for frames in (1, 3, 1, 3):
        convolve(torch.randn(1, 4, frames, 5, 5), conv)
    assert made == [1, 2, 3, 1, 1, 3]


def test_gradients_pass_and_other_kernels_are_left():
    conv = nn.Conv3d(4, 4, (3, 1, 1))
    x = torch.randn(1, 4, 5, 3, 3, requires_grad=True)
    convolve(x, PackedConv3d(conv), Stream()).sum().backward()
    assert x.grad is not None and conv.weight.grad is not None
    assert as_plane(nn.Conv3d(4, 4, (3, 3, 3))) is None and as_plane(nn.Conv3d(4, 4, (1, 3, 3), groups=2)) is None


@torch.no_grad()
def test_without_onednn_it_is_the_plain_convolution():
    conv, x = nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1)), torch.randn(1, 8, 2, 5, 5)
    assert torch.float32 in packable()
    with torch.backends.mkldnn.flags(enabled=False):
        assert packable() == ()
        torch.testing.assert_close(convolve(x, PackedConv3d(conv), Stream()), conv(x), atol=1e-5, rtol=0)
