"""Networks that look both ways, window by window: the values of the whole signal, whatever the window."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmtok.nn.dac import DACDecoder, DACEncoder
from mmtok.nn.stream import join
from mmtok.nn.windows import Local, run_in_windows
from mmtok.optimize import PackedConv1d, PackedConvTranspose1d


class Adding(nn.Module):
    """Overwrites its input, as prepared networks do."""

    def forward(self, x):
        return x.add_(1)


@settings(max_examples=120, deadline=None)
@given(
    length=st.integers(1, 300), packed=st.booleans(), values=st.integers(1, 600), batch=st.integers(1, 2),
    steps=st.lists(st.tuples(st.booleans(), *[st.integers(1, 4)] * 2), min_size=1, max_size=4), seed=st.integers(0, 99),
)  # fmt: skip
@torch.no_grad()
def test_windows_equal_the_whole(length, steps, packed, values, batch, seed):
    torch.manual_seed(seed)
    layers, known, width = [], [], 2
    for up, stride, dilation in steps:
        half = -(-stride // 2)
        if up:
            conv, rate = nn.ConvTranspose1d(width, 3, 2 * stride, stride, half, stride % 2 if stride > 1 else 0), stride
            layers.append(PackedConvTranspose1d(conv, torch.float32) if packed else conv)
            known.append(Local(2, Fraction(rate), 3 * rate))
        else:
            padding = stride * dilation
            conv = nn.Conv1d(width, 3, 2 * stride, stride, padding, dilation)
            layers.append(PackedConv1d(conv, torch.float32) if packed else conv)
            known.append(Local(2 * stride * dilation, Fraction(1, stride), max(width, 3)))
        layers.append(Adding())
        known.append(Local(0, Fraction(1), 3))
        width = 3
    x = torch.randn(batch, 2, length)
    before = x.clone()
    try:
        whole = nn.Sequential(*layers)(x)
    except RuntimeError:  # nothing left of a short signal
        return
    torch.testing.assert_close(run_in_windows(layers, x, known, values), whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(x, before)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@torch.no_grad()
def test_a_codec_in_windows_equals_the_whole(last):
    torch.manual_seed(0)
    encoder, decoder = DACEncoder(8, [2, 4, 5]), DACDecoder(64, 64, [5, 4, 2])
    x = torch.randn(2, 1, 4001)[..., :4000]
    z = encoder.layers(x)
    z = z.transpose(1, 2).contiguous().transpose(1, 2) if last else z
    whole = decoder(z)
    for values in (1500, 2 * 8 * 1000, 40000):
        assert torch.allclose(run_in_windows(list(encoder.layers), x, encoder.known, values), z, atol=1e-5)
        pieces = decoder.bound(run_in_windows(list(decoder.layers), z, decoder.known, values))
        assert pieces.shape == whole.shape and torch.allclose(pieces, whole, atol=1e-5)


@torch.no_grad()
def test_the_windows_of_a_codec_are_few_and_overlap_little():
    encoder, seen = DACEncoder(4, [2, 4, 5]), []
    encoder.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    run_in_windows(list(encoder.layers), torch.randn(1, 1, 40_000), encoder.known, 40_000)
    assert 4 <= len(seen) <= 6 and sum(seen) < 1.2 * 40_000


def test_joined_parts_keep_the_layout_of_the_longest():
    first, longest = torch.randn(2, 3, 1), torch.randn(2, 9, 3).transpose(1, 2)
    joined = join(first, longest, first[..., :0])
    assert torch.equal(joined, torch.cat([first, longest], -1)) and joined.stride(1) == 1
    assert join(first, longest.contiguous()).is_contiguous()
