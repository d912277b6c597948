"""Residual quantization at several frame rates."""

import pytest
import torch

from mmtok.keep import GridPrefix
from mmtok.quantizers.projected import Projected
from mmtok.quantizers.strided import StridedResidual
from mmtok.quantizers.vq import VQ


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    levels = [Projected(VQ(3, 16, cosine=True, revival=0.0), 6) for _ in range(3)]
    return StridedResidual(levels, [4, 2, 1]).eval()


@torch.no_grad()
def test_decode_equals_forward_for_every_prefix_of_levels(quantizer):
    z = torch.randn(2, 6, 16)
    full = quantizer(z)
    assert [tuple(g.shape) for g in full.grids] == [(2, 1, 4), (2, 1, 8), (2, 1, 16)]
    assert quantizer.shapes((16,)) == ((1, 4), (1, 8), (1, 16))
    shapes = quantizer.shapes((16,))
    values = []
    for levels in (1, 2, 3):
        keep = GridPrefix().masks(torch.full((2, 1), levels - 1), shapes)
        out = quantizer(z, keep)
        assert torch.equal(quantizer.decode(out.grids, keep), out.z)
        assert all(torch.equal(a, b) for a, b in zip(out.grids[:levels], full.grids, strict=False))
        assert not any(grid.any() for grid in out.grids[levels:])
        values.append(out.z)
    assert torch.equal(values[-1], full.z)
    # the coarse level speaks for four frames at a time
    assert torch.equal(values[0].unflatten(-1, (4, 4)).std(-1), torch.zeros(2, 6, 4))


def test_gradients_reach_latents_projections_and_codebooks(quantizer):
    quantizer.train()
    z = torch.randn(2, 6, 8, requires_grad=True)
    out = quantizer(z)
    (out.z.square().sum() + out.losses["commit"] + out.losses["codebook"]).backward()
    assert z.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in quantizer.parameters())


def test_mistakes(quantizer):
    with pytest.raises(ValueError, match="not a multiple"):
        quantizer(torch.randn(1, 6, 10))
    with pytest.raises(ValueError, match="one positive stride a level"):
        StridedResidual([VQ(3, 4)], [2, 1])
    with pytest.raises(ValueError, match="codes 0..15"):
        quantizer.decode(tuple(torch.full((1, 1, n), 16) for n in (2, 4, 8)))
