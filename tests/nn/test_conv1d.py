"""Convolutions over time: lengths, causality, chunks of any size, weight normalization."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.nn.conv1d import SameConv1d, SameConvTranspose1d
from mmtok.nn.seanet import ResidualLSTM, SEANetDecoder, SEANetEncoder
from mmtok.nn.stream import Stream
from mmtok.nn.weight_norm import fold_weight_norm, is_weight_normed, unfold_weight_norm


def pieces(module, x, sizes):
    """Output of the module fed with pieces of these sizes, the rest last."""
    stream, at, out = Stream(), 0, []
    for n in [*sizes, x.shape[-1]]:
        end = min(at + n, x.shape[-1])
        stream = stream.next(last=end == x.shape[-1])
        out.append(module(x[..., at:end], stream))
        at = end
        if stream.last:
            return torch.cat(out, -1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    stride=st.integers(1, 4), more=st.integers(0, 5), dilation=st.integers(1, 3), length=st.integers(1, 40),
    pad_mode=st.sampled_from(["reflect", "constant", "replicate"]), sizes=st.lists(st.integers(0, 9), max_size=8),
)  # fmt: skip
@torch.no_grad()
def test_a_causal_convolution_in_pieces(stride, more, dilation, length, pad_mode, sizes):
    kernel = 2 * stride + more
    conv = SameConv1d(2, 3, kernel, stride, dilation, causal=True, pad_mode=pad_mode)
    x = torch.randn(2, 2, length)
    whole = conv(x)
    assert whole.shape == (2, 3, -(-length // stride))
    torch.testing.assert_close(pieces(conv, x, sizes), whole)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(stride=st.integers(1, 4), more=st.integers(0, 6), length=st.integers(1, 20), sizes=st.lists(st.integers(0, 6)))
@torch.no_grad()
def test_a_causal_transposed_convolution_in_pieces(stride, more, length, sizes):
    conv = SameConvTranspose1d(2, 3, stride + more, stride, causal=True)
    x = torch.randn(1, 2, length)
    assert conv(x).shape == (1, 3, length * stride)
    torch.testing.assert_close(pieces(conv, x, sizes), conv(x))


@torch.no_grad()
def test_a_causal_network_hears_no_future_and_a_centred_one_does():
    x = torch.randn(1, 1, 160)
    later = x.clone()
    later[..., 80:] = 0
    for causal in (True, False):
        network = SEANetEncoder(dim=4, n_filters=4, ratios=[5, 2], causal=causal)
        same = torch.equal(network(x)[..., :8], network(later)[..., :8])
        assert same == causal == network.causal


def test_what_looks_ahead_refuses_to_stream():
    for module in (SEANetEncoder(n_filters=2, causal=False), SEANetEncoder(n_filters=2, norm="time_group_norm")):
        with pytest.raises(ValueError, match="cannot stream"):
            module(torch.zeros(1, 1, 400), Stream())
    with pytest.raises(ValueError, match="trim_right_ratio"):
        SameConvTranspose1d(1, 1, 4, 2, causal=True, trim_right_ratio=0.5)(torch.zeros(1, 1, 4), Stream())
    with pytest.raises(ValueError, match="smaller than stride"):
        SameConv1d(1, 1, 2, 3)


@torch.no_grad()
def test_an_old_stream_state_still_works():
    """A caller may go back: a state is not changed by the calls made from it."""
    decoder = SEANetDecoder(dim=4, n_filters=4, ratios=[5, 2])
    z = torch.randn(1, 4, 30)
    start = Stream().next()
    decoder(z[..., :10], start)
    first, second = start.next(last=True), start.next(last=True)
    assert torch.equal(decoder(z[..., 10:], first), decoder(z[..., 10:], second))


def test_two_directions_double_the_channels():
    lstm = ResidualLSTM(4, 2, bidirectional=True)
    x = torch.randn(1, 4, 6)
    y = lstm(x)
    assert y.shape == (1, 8, 6)
    assert not torch.equal(y[..., :3], lstm(x[..., :3]))  # the backward direction hears what follows


def test_weight_norm_folds_unfolds_trains_and_copies():
    conv = SameConvTranspose1d(3, 5, 4, 2)
    x = torch.randn(1, 3, 7)
    before = conv(x)
    assert conv.conv.parametrizations.weight.original0.shape == (3, 1, 1)  # norms over input channels, as published
    torch.testing.assert_close(copy.deepcopy(conv)(x), before)  # averages of weights copy models after a forward
    twin = copy.deepcopy(conv)
    names = fold_weight_norm(conv)
    torch.testing.assert_close(twin(x), before)  # copies are untouched
    assert names == ["conv"] and not is_weight_normed(conv.conv)
    torch.testing.assert_close(conv(x), before)
    unfold_weight_norm(conv, names)
    torch.testing.assert_close(conv(x), before)
    conv(x).sum().backward()
    assert conv.conv.parametrizations.weight.original0.grad is not None
