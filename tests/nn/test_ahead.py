"""Convolutions that look both ways: torch's values for whole signals, and the same for pieces of any length."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.nn.ahead import AheadConv1d, AheadConvTranspose1d
from mmtok.nn.dac import DACDecoder, DACEncoder
from mmtok.nn.stream import Stream, join, run_in_pieces
from mmtok.optimize import PackedConv1d, PackedConvTranspose1d


def in_pieces(module, x, cuts):
    stream, parts = Stream(), []
    bounds = [0, *sorted(cuts), x.shape[-1]]
    for index, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False)):
        stream = stream.next(last=index == len(bounds) - 2)
        parts.append(module(x[..., a:b], stream))
    return torch.cat(parts, -1)


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(1, 60), kernel=st.integers(1, 7), stride=st.integers(1, 4), dilation=st.integers(1, 3),
    packed=st.booleans(), cuts=st.lists(st.integers(0, 60), max_size=5), seed=st.integers(0, 1 << 20),
)
@torch.no_grad()
def test_pieces_equal_the_whole(length, kernel, stride, dilation, packed, cuts, seed):
    torch.manual_seed(seed)
    stride = min(stride, kernel)
    padding = (kernel - 1) * dilation // 2 + (kernel > 1)
    plain = AheadConv1d(3, 5, kernel, stride, padding, dilation)
    reference = torch.nn.Conv1d(3, 5, kernel, stride, padding, dilation)
    reference.load_state_dict(plain.state_dict())
    module = PackedConv1d(plain, torch.float32) if packed else plain
    x = torch.randn(2, 3, length)
    whole = reference(x)
    assert torch.allclose(module(x), whole, atol=1e-5)
    assert torch.allclose(in_pieces(module, x, [min(c, length) for c in cuts]), whole, atol=1e-5)


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(1, 40), stride=st.integers(1, 8), packed=st.booleans(), bias=st.booleans(),
    cuts=st.lists(st.integers(0, 40), max_size=5), seed=st.integers(0, 1 << 20),
)
@torch.no_grad()
def test_transposed_pieces_equal_the_whole(length, stride, packed, bias, cuts, seed):
    torch.manual_seed(seed)
    padding, more = -(-stride // 2), stride % 2 if stride > 1 else 0
    plain = AheadConvTranspose1d(3, 5, 2 * stride, stride, padding, more, bias=bias)
    reference = torch.nn.ConvTranspose1d(3, 5, 2 * stride, stride, padding, more, bias=bias)
    reference.load_state_dict(plain.state_dict())
    module = PackedConvTranspose1d(plain, torch.float32) if packed else plain
    x = torch.randn(2, 3, length)
    whole = reference(x)
    assert torch.allclose(module(x), whole, atol=1e-5)
    assert torch.allclose(in_pieces(module, x, [min(c, length) for c in cuts]), whole, atol=1e-5)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@torch.no_grad()
def test_a_codec_in_pieces_equals_the_whole(last):
    torch.manual_seed(0)
    encoder, decoder = DACEncoder(8, [2, 4, 5]), DACDecoder(64, 64, [5, 4, 2])
    x = torch.randn(2, 1, 4001)[..., :4000]
    z = encoder.layers(x)
    z = z.transpose(1, 2).contiguous().transpose(1, 2) if last else z
    whole = decoder(z)
    for values in (1500, 2 * 8 * 1000, 40000):
        assert torch.allclose(run_in_pieces(list(encoder.layers), x, encoder.widths, values), z, atol=1e-5)
        pieces = decoder.bound(run_in_pieces(list(decoder.layers), z, decoder.widths, values))
        assert pieces.shape == whole.shape and torch.allclose(pieces, whole, atol=1e-5)


def test_joined_parts_keep_the_layout_of_the_longest():
    first, longest = torch.randn(2, 3, 1), torch.randn(2, 9, 3).transpose(1, 2)
    joined = join(first, longest, first[..., :0])
    assert torch.equal(joined, torch.cat([first, longest], -1)) and joined.stride(1) == 1
    assert join(first, longest.contiguous()).is_contiguous()
