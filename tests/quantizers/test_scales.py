"""One codebook over a list of grid sizes: proportions, convolutions by tick, drop, gradients."""

from __future__ import annotations

import pytest
import torch

from mmtok.keep import FlatPrefix, GridPrefix
from mmtok.quantizers.lookup_free import LFQ
from mmtok.quantizers.projected import Projected
from mmtok.quantizers.scales import ScaleResidual, SharedPhi
from mmtok.quantizers.vq import VQ

VAR = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]


def make(**options) -> ScaleResidual:
    torch.manual_seed(0)
    return ScaleResidual(VQ(5, 32), [1, 2, 4], SharedPhi(5, 4), **options)


def test_var_sends_680_codes_and_other_sizes_in_proportion() -> None:
    quantizer = ScaleResidual(VQ(4, 8), VAR)
    assert [shape[1:] for shape in quantizer.shapes((16, 16))] == [(n, n) for n in VAR]
    assert sum(k * h * w for k, h, w in quantizer.shapes((16, 16))) == 680
    assert quantizer.shapes((32, 16))[4] == (1, 10, 5) and quantizer.shapes((32, 16))[-1] == (1, 32, 16)


def test_ticks_choose_the_convolution() -> None:
    def used(count: int, scales: int) -> list[int]:
        phi = SharedPhi(1, count)
        for index, conv in enumerate(phi.convs):
            torch.nn.init.zeros_(conv.weight)
            torch.nn.init.constant_(conv.bias, 2.0 * index)
        x = torch.zeros(1, 1, 1, 1)
        return [round(phi(x, i / (scales - 1)).item()) for i in range(scales)]

    assert used(4, 10) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]  # VAR itself: two ties, decided by rounding
    assert used(1, 3) == [0, 0, 0]
    assert used(3, 3) == [0, 1, 2]


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (7, 5)])
def test_any_prefix_of_scales_decodes_to_its_running_sum(size) -> None:
    quantizer = make().eval()
    z = torch.randn(2, 5, *size)
    full = quantizer(z)
    sums = quantizer.partial_sums(full.grids)
    assert torch.equal(sums[-1], full.z)
    for count in (1, 2, 3):
        keep = GridPrefix().masks(torch.tensor([[count - 1], [2]]), quantizer.shapes(size))
        out = quantizer(z, keep)
        assert torch.equal(quantizer.decode(out.grids, keep), out.z)
        torch.testing.assert_close(out.z[0], sums[count - 1][0])
        torch.testing.assert_close(out.z[1], full.z[1])


def test_one_straight_through_step_and_losses_of_the_running_sum() -> None:
    quantizer = make().train()
    z = torch.randn(2, 5, 4, 4, requires_grad=True)
    table = quantizer.quantizer.table().detach().clone()
    out = quantizer(z)
    weight = torch.randn(2, 5, 4, 4)
    (g,) = torch.autograd.grad((out.z * weight).sum(), z, retain_graph=True)
    torch.testing.assert_close(g, weight)
    quantizer.quantizer.codebook.data.copy_(table)
    sums = quantizer.partial_sums(out.grids)
    expected = torch.stack([(value - z).square().mean() for value in sums]).mean()
    torch.testing.assert_close(out.losses["commit"], expected)
    torch.testing.assert_close(out.losses["codebook"], expected)
    out.losses["codebook"].backward()
    assert quantizer.quantizer.codebook.grad.abs().sum() > 0
    assert quantizer.phi.convs[0].weight.grad.abs().sum() > 0


def test_entropy_of_bits_reaches_the_encoder_at_every_scale() -> None:
    quantizer = ScaleResidual(LFQ(5, entropy_temperature=1.0), [1, 2, 4]).train()
    z = torch.randn(2, 5, 4, 4, requires_grad=True)
    out = quantizer(z)
    assert {"commit", "codebook", "sample_entropy", "diversity"} == set(out.losses)
    (g,) = torch.autograd.grad(out.losses["sample_entropy"], z)
    assert g.abs().sum() > 0


def test_a_dropped_scale_is_coded_by_the_later_ones() -> None:
    torch.manual_seed(1)
    quantizer = make(drop=1.0)
    z = torch.randn(2, 5, 4, 4)
    whole = quantizer.eval()(z)
    differs = set()
    for _ in range(10):
        torch.manual_seed(len(differs) + _)
        out = quantizer.train()(z)
        quantizer.load_state_dict(make().state_dict())
        assert torch.equal(out.grids[0], whole.grids[0])  # the first scale always counts
        differs.add(bool((out.grids[2] != whole.grids[2]).any()))
    assert differs == {True, False}  # scale 1 or scale 2 was dropped


@pytest.mark.parametrize(
    ("size", "mode", "rank"), [((12,), "linear", 1), ((4, 6), "bicubic", 2), ((4, 4, 2), "trilinear", 3)]
)
def test_other_ranks(size, mode, rank) -> None:
    quantizer = ScaleResidual(VQ(5, 16), [1, 2, 4], SharedPhi(5, 2, rank=rank), mode).eval()
    out = quantizer(torch.randn(2, 5, *size))
    assert torch.equal(quantizer.decode(out.grids), out.z)


def test_a_projection_may_sit_around_the_scales() -> None:
    quantizer = Projected(make(), 12).eval()
    z = torch.randn(2, 12, 4, 4)
    keep = GridPrefix().masks(torch.tensor([[0], [2]]), quantizer.shapes((4, 4)))
    out = quantizer(z, keep)
    assert torch.equal(quantizer.decode(out.grids, keep), out.z)


def test_bad_scales_name_their_key() -> None:
    for scales in ([], [0, 1], [4, 2]):
        with pytest.raises(ValueError, match="scales"):
            ScaleResidual(VQ(4, 8), scales)
    with pytest.raises(ValueError, match="phi"):
        SharedPhi(4, 0)


def test_a_prefix_may_end_inside_a_scale() -> None:
    quantizer = make().eval()
    z = torch.randn(2, 5, 4, 4)
    shapes = quantizer.shapes((4, 4))
    full = quantizer(z)
    for length in (1, 3, 5, 12, 21):
        keep = FlatPrefix().masks(torch.full((2, 1), length - 1), shapes)
        out = quantizer(z, keep)
        assert torch.equal(quantizer.decode(out.grids, keep), out.z)
        sent = torch.cat([grid.flatten(1) for grid in out.grids], 1)
        first = torch.cat([grid.flatten(1) for grid in full.grids], 1)[:, : 1 if length < 5 else 5]
        assert torch.equal(sent[:, : first.shape[1]], first) and not sent[:, length:].any()
