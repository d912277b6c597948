"""Fast forms of frozen video networks: Winograd's filtering, folded kernels, half precision."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmtok.nn import winograd
from mmtok.nn.conv3d import convolve
from mmtok.nn.repeat3d import RepeatConv3d
from mmtok.nn.stream import Stream
from mmtok.nn.winograd import WinogradConv3d, transforms
from mmtok.optimize import optimize

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "video"))
from video_models import MODELS, randomise, video  # noqa: E402


@pytest.fixture
def narrow(monkeypatch):
    """Winograd's filtering for small networks too."""
    monkeypatch.setattr(winograd, "NARROW", 1)


def test_the_transforms_are_an_exact_correlation():
    there, back, kernel = transforms()
    d, w = torch.randn(6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    y = back @ ((kernel @ w) * (there @ d))
    torch.testing.assert_close(y, d.unfold(0, 3, 1) @ w, atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (5, 11), (3, 4)])
def test_winograd_equals_the_direct_convolution(frames, size, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(winograd, "TILES", 5)  # several parts
    conv = nn.Conv3d(12, 20, (frames, 3, 3), padding=(0, 1, 1))
    x = torch.randn(2, 12, 6, *size).contiguous(memory_format=torch.channels_last_3d)
    fast = WinogradConv3d(conv)
    expected = copy.deepcopy(conv).double()(x.double())
    torch.testing.assert_close(convolve(x, fast).double(), expected, atol=1e-5, rtol=0)
    assert fast.state_dict().keys() == conv.state_dict().keys()
    with torch.enable_grad():
        needed = x.clone().requires_grad_()
        convolve(needed, fast).sum().backward()
    assert needed.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("kind", [
    {"kernel": (3, 3, 3), "time": 2}, {"kernel": (3, 3, 3), "time": 2, "pad_mode": "zeros"},
    {"kernel": (3, 1, 1), "time": 2}, {"kernel": (1, 3, 3), "space": 2},
])  # fmt: skip
def test_folded_kernels_equal_repeating(kind):
    torch.manual_seed(0)
    plain = RepeatConv3d(6, **kind).double()
    folded = copy.deepcopy(plain)
    folded.fold(lambda conv: conv)
    x = torch.randn(2, 6, 7, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(folded(x), plain(x), atol=1e-12, rtol=0)
    assert folded(x).shape[2] == 7 * kind.get("time", 1) and folded.state_dict().keys() == plain.state_dict().keys()
    for module in (plain, folded):
        stream, parts = Stream(), []
        for piece in x.split([1, 3, 0, 2, 1], 2):
            parts.append(module(piece, stream))
        torch.testing.assert_close(torch.cat(parts, 2), plain(x), atol=1e-12, rtol=0)
    weights = sum(w.numel() for w in (folded.conv.weight,)) * (2 if "time" in kind else 4)
    assert folded._folded[0].weight.numel() == weights * (2 / 3 if "time" in kind else 4 / 9)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="double one of them"):
        RepeatConv3d(4, (3, 3, 3), time=2, space=2)


def fast(model, dtype):
    return optimize(copy.deepcopy(model), dtype)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_codes_are_equal_and_streams_stay_equal(narrow, name):
    plain = MODELS[name]()
    model = fast(plain, torch.float32)
    assert any(isinstance(m, WinogradConv3d) for m in model.modules())
    assert model.state_dict().keys() == plain.state_dict().keys()
    x = video(17, 24, 20)
    tokens = plain.encode(x)
    assert torch.equal(model.encode(x).codes, tokens.codes)
    torch.testing.assert_close(model.decode(tokens), plain.decode(tokens), atol=2e-5, rtol=0)
    there, back, codes, shown = model.stream_state(), model.stream_state(), [], []
    for index, piece in enumerate(x.split(3, 2)):
        part, there = model.encode_chunk(piece, there, last=index == 5)
        frames, back = model.decode_chunk(part, back, last=index == 5)
        codes.append(part.codes)
        shown.append(frames)
    assert torch.equal(torch.cat(codes, 2), tokens.codes)
    torch.testing.assert_close(torch.cat(shown, 2), model.decode(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 on this CPU")
@pytest.mark.parametrize("name", ["vidtok_488", "cosmos_888", "thumbnail"])
def test_half_precision_comes_near_and_stays_float32_outside(name):
    plain = randomise(MODELS[name]())
    model = fast(plain, torch.bfloat16)
    x = video(9)
    z, near = plain.latents(x), model.latents(x)
    assert near.dtype == torch.float32 and float((near - z).abs().mean()) < 0.01 * float(z.std())
    tokens = plain.encode(x)
    assert float((model.decode(tokens) - plain.decode(tokens)).abs().mean()) < 0.01
    assert not torch.equal(near, z)
