"""Residual pyramid: any prefix of its codes decodes, and the gradient passes once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmtok.keep import FlatPrefix
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.multiscale import MultiScale
from mmtok.quantizers.vq import VQ


def make(strides=(4, 2, 1, 1)) -> MultiScale:
    torch.manual_seed(0)
    return MultiScale([VQ(5, 16 + 8 * i) for i in range(len(strides))], list(strides))


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (9, 16)])
def test_decode_equals_forward_for_any_prefix(size) -> None:
    quantizer = make().eval()
    z = torch.randn(2, 5, *size)
    shapes = quantizer.shapes(size)
    (total,) = FlatPrefix().sizes(shapes)
    for length in {1, 2, total // 2, total}:
        keep = FlatPrefix().masks(torch.full((2, 1), length - 1), shapes)
        out = quantizer(z, keep)
        assert tuple(tuple(grid.shape[1:]) for grid in out.grids) == shapes
        assert torch.equal(quantizer.decode(out.grids, keep), out.z)


def test_each_scale_codes_what_the_coarser_ones_left() -> None:
    quantizer = make((2, 1)).eval()
    z = torch.randn(1, 5, 4, 4)
    out = quantizer(z)
    first = quantizer.scales[0].decode((out.grids[0],))
    rest = z - F.interpolate(first, size=(4, 4), mode="bilinear")
    codebook = quantizer.scales[1].codebook
    nearest = torch.cdist(rest.movedim(1, -1).reshape(-1, 5), codebook).argmin(1)
    assert torch.equal(out.grids[1].flatten(), nearest)


def test_codes_of_a_prefix_do_not_depend_on_what_is_dropped_after_it() -> None:
    quantizer = make().eval()
    z = torch.randn(2, 5, 8, 8)
    full = quantizer(z)
    keep = FlatPrefix().masks(torch.full((2, 1), 83), quantizer.shapes((8, 8)))
    part = quantizer(z, keep)
    for index in range(3):
        assert torch.equal(full.grids[index], part.grids[index])
    assert not part.grids[3].any()


@pytest.mark.parametrize(("sent", "passes"), [((1, 1, 1), "all"), ((1, 0, 0), "coarse"), ((0, 0, 0), "nothing")])
def test_the_straight_through_gradient_is_that_of_what_is_sent(sent, passes) -> None:
    quantizer = make((2, 1, 1)).train()
    z = torch.randn(1, 5, 4, 4, requires_grad=True)
    keep = tuple(torch.tensor(bool(flag)).view(1, 1, 1, 1) for flag in sent)
    weight = torch.randn(1, 5, 4, 4)
    (quantizer(z, keep).z * weight).sum().backward()
    pooled = torch.zeros(1, 5, 4, 4, requires_grad=True)
    coarse = F.interpolate(F.adaptive_avg_pool2d(pooled, 2), size=(4, 4), mode="bilinear")
    (coarse * weight).sum().backward()
    expected = {"all": weight, "coarse": pooled.grad, "nothing": torch.zeros_like(weight)}[passes]
    torch.testing.assert_close(z.grad, expected)


def test_losses_are_means_over_scales_and_statistics_name_the_scale() -> None:
    quantizer = make((2, 1)).train()
    out = quantizer(torch.randn(2, 5, 4, 4))
    assert set(out.losses) == {"commit", "codebook"}
    assert {"usage_0", "perplexity_0", "usage_1", "perplexity_1"} == set(out.stats)


def test_scales_may_be_of_any_kind() -> None:
    quantizer = MultiScale([FSQ([5, 5, 5]), VQ(3, 9)], [2, 1]).eval()
    out = quantizer(torch.randn(1, 3, 6, 6))
    assert quantizer.codebook_sizes == ((125,), (9,))
    assert torch.equal(quantizer.decode(out.grids), out.z)


def test_mismatched_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="strides"):
        MultiScale([VQ(4, 8)], [2, 1])
    with pytest.raises(ValueError, match="one dim"):
        MultiScale([VQ(4, 8), VQ(5, 8)], [2, 1])
