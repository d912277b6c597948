"""The MDCT against its definition, and that a clip comes back whole."""

import math

import pytest
import torch

from mmtok.nn.mdct import MDCT


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize("hop", [2, 16, 320])
def test_a_clip_comes_back_and_keeps_its_energy(frames, hop):
    torch.manual_seed(0)
    x, mdct = torch.randn(2, frames * hop), MDCT(hop)
    c = mdct(x)
    assert c.shape == (2, frames, hop)
    torch.testing.assert_close(mdct.inverse(c), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(c.square().sum(), x.square().sum(), rtol=1e-5, atol=0)


def test_inner_frames_follow_the_definition():
    torch.manual_seed(0)
    hop = 8
    x = torch.randn(1, 5 * hop, dtype=torch.float64)
    c = MDCT(hop)(x.float())[0]
    for frame in (1, 2, 3):
        span = x[0, frame * hop - hop // 2 : (frame + 1) * hop + hop // 2]
        for k in range(hop):
            total = sum(
                float(span[n]) * math.sin(math.pi * (n + 0.5) / (2 * hop))
                * math.cos(math.pi / hop * (n + 0.5 + hop / 2) * (k + 0.5))
                for n in range(2 * hop)
            )  # fmt: skip
            assert abs(float(c[frame, k]) - total * math.sqrt(2 / hop)) < 1e-5


def test_an_odd_hop_is_refused():
    with pytest.raises(ValueError, match="even"):
        MDCT(5)
