"""Residual, split and product quantizers: order, depth drop, gradients, shared codebooks."""

from __future__ import annotations

import pytest
import torch
from vector_quantize_pytorch import GroupedResidualVQ, ResidualVQ

from mmtok.keep import Prefix
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.ibq import IBQ
from mmtok.quantizers.projected import Projected
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.split import Product, SplitResidual
from mmtok.quantizers.vq import VQ


def chain(depth: int = 4, through: bool = False, **options) -> Residual:
    torch.manual_seed(0)
    return Residual([VQ(5, 16, **options) for _ in range(depth)], through=through)


def test_codes_equal_the_public_library() -> None:
    theirs = ResidualVQ(dim=5, codebook_size=16, num_quantizers=4).eval()
    ours = chain().eval()
    for depth, layer in zip(ours.depths, theirs.layers, strict=True):
        depth.codebook.data.copy_(layer.codebook)
    z = torch.randn(2, 5, 40)
    value, codes, _ = theirs(z.transpose(1, 2))
    out = ours(z)
    assert torch.equal(out.grids[0], codes.transpose(1, 2))
    torch.testing.assert_close(out.z, value.transpose(1, 2))


def test_groups_equal_the_public_library_depth_first() -> None:
    theirs = GroupedResidualVQ(dim=6, codebook_size=16, num_quantizers=3, groups=2).eval()
    groups = [Residual([VQ(3, 16) for _ in range(3)]) for _ in range(2)]
    for group, chain_ in zip(groups, theirs.rvqs, strict=True):
        for depth, layer in zip(group.depths, chain_.layers, strict=True):
            depth.codebook.data.copy_(layer.codebook)
    z = torch.randn(2, 6, 20)
    value, codes, _ = theirs(z.transpose(1, 2))  # codes [groups, B, N, depths]
    out = Product(groups, interleave=True).eval()(z)
    torch.testing.assert_close(out.z, value.transpose(1, 2))
    assert torch.equal(out.grids[0], codes.permute(1, 3, 0, 2).reshape(2, 6, 20))


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}])
@pytest.mark.parametrize("size", [(9,), (3, 4), (2, 3, 4)])
def test_one_pass_over_all_depths_equals_depth_by_depth(options, size, monkeypatch) -> None:
    quantizer = chain(**options).eval()
    z = torch.randn(3, 5, *size)
    keep = Prefix(1).masks(torch.tensor([[0], [2], [3]]), quantizer.shapes(size))
    for mask in (None, keep):
        fused = quantizer(z, mask)
        with monkeypatch.context() as patch:
            patch.setattr(Residual, "_plain", lambda self: False)
            plain = quantizer(z, mask)
        assert torch.equal(fused.grids[0], plain.grids[0])
        assert torch.equal(fused.z, plain.z) and torch.equal(fused.z, quantizer.decode(fused.grids, mask))
        assert fused.losses.keys() == plain.losses.keys() and fused.stats.keys() == plain.stats.keys()
        for ours, theirs in ((fused.losses, plain.losses), (fused.stats, plain.stats)):
            for name, value in ours.items():
                torch.testing.assert_close(value, theirs[name])


def test_any_prefix_of_depths_decodes_to_its_partial_sum() -> None:
    quantizer = chain().eval()
    z = torch.randn(2, 5, 6)
    full = quantizer(z)
    sums = quantizer.partial_sums(full.grids)
    assert torch.equal(sums[-1], full.z) and len(quantizer.embeddings(full.grids)) == 4
    for depth in range(1, 5):
        keep = Prefix(1).masks(torch.full((2, 1), depth - 1), quantizer.shapes((6,)))
        out = quantizer(z, keep)
        assert torch.equal(out.grids[0][:, :depth], full.grids[0][:, :depth]) and not out.grids[0][:, depth:].any()
        torch.testing.assert_close(out.z, sums[depth - 1])


def test_depths_that_are_not_sent_are_not_subtracted() -> None:
    quantizer = chain(2).eval()
    z = torch.randn(1, 5, 3)
    keep = (torch.tensor([[[False], [True]]]),)  # only the second depth: no prefix
    out = quantizer(z, keep)
    assert torch.equal(out.grids[0][:, 1:], quantizer.depths[1](z).grids[0])


@pytest.mark.parametrize("through", [False, True])
def test_both_straight_through_gradients(through) -> None:
    quantizer = chain(3, through, revival=0).train()
    z = torch.randn(2, 5, 7, requires_grad=True)
    out = quantizer(z)
    weight = torch.randn(2, 5, 7)
    (g,) = torch.autograd.grad((out.z * weight).sum(), z, retain_graph=True)
    torch.testing.assert_close(g, weight)  # once, however deep
    (g,) = torch.autograd.grad(out.losses["commit"], z)
    codes = [depth.codebook[out.grids[0][:, i]].movedim(-1, 1).detach() for i, depth in enumerate(quantizer.depths)]
    rests = [z.detach() - sum(codes[: i + 1]) for i in range(3)]
    expected = 2 * (rests[0] if through else sum(rests)) / (3 * z.numel())
    torch.testing.assert_close(g, expected, rtol=1e-4, atol=1e-7)


def test_depths_may_share_one_codebook() -> None:
    quantizer = Residual([VQ(5, 16, ema_decay=0.9)], depth=3)
    assert quantizer.num_quantizers == 3 and quantizer.codebook_sizes == ((16, 16, 16),)
    assert [key for key in quantizer.state_dict() if key.endswith("codebook")] == ["depths.0.codebook"]
    out = quantizer.eval()(torch.randn(2, 5, 4))
    rest = out.z - quantizer.depths[0].decode((out.grids[0][:, :1],))
    torch.testing.assert_close(rest, sum(quantizer.embeddings(out.grids)[1:]))


def test_losses_are_means_over_the_codes_that_are_sent() -> None:
    quantizer = chain(2).eval()
    z = torch.randn(2, 5, 4)
    keep = Prefix(1).masks(torch.tensor([[0], [1]]), quantizer.shapes((4,)))
    sums = quantizer.partial_sums(quantizer(z).grids)
    squares = [(z - value).square() for value in sums]
    expected = (squares[0].sum() + squares[1][1].sum()) / (3 * 5 * 4)
    torch.testing.assert_close(quantizer(z, keep).losses["commit"], expected)
    torch.testing.assert_close(quantizer.train()(z, keep).losses["commit"], expected)


def test_split_parts_code_the_same_latents() -> None:
    torch.manual_seed(0)
    first, rest = VQ(5, 8), chain(2)
    quantizer = SplitResidual(first, rest).eval()
    z = torch.randn(2, 5, 6)
    out = quantizer(z)
    assert quantizer.codebook_sizes == ((8, 16, 16),)
    assert torch.equal(out.grids[0], torch.cat([first(z).grids[0], rest(z).grids[0]], 1))
    semantic = (torch.tensor([True, False, False]).view(1, 3, 1),)
    assert torch.equal(quantizer.decode(out.grids, semantic), first.decode((out.grids[0][:, :1],)))


def test_product_members_take_their_channels() -> None:
    torch.manual_seed(0)
    members = [VQ(2, 8), FSQ([3, 3, 3]), chain(2)]
    quantizer = Product(members).eval()
    z = torch.randn(2, 10, 4)
    out = quantizer(z)
    assert quantizer.codebook_sizes == ((8, 27, 16, 16),)
    for member, part, columns in zip(members, z.split([2, 3, 5], 1), ([0], [1], [2, 3]), strict=True):
        assert torch.equal(out.grids[0][:, columns], member(part).grids[0])
    assert torch.equal(out.z, torch.cat([m(p).z for m, p in zip(members, z.split([2, 3, 5], 1), strict=True)], 1))


def test_disentanglement_is_the_mean_squared_cosine() -> None:
    quantizer = Product([VQ(2, 4), VQ(2, 4)], disentangle=True)
    for member, rows in zip(quantizer.members, ([[1.0, 0.0]] * 4, [[1.0, 1.0]] * 4), strict=True):
        member.codebook.data.copy_(torch.tensor(rows))
    torch.testing.assert_close(quantizer.eval()(torch.randn(1, 4, 3)).losses["disentangle"], torch.tensor(0.5))


def test_wrong_compositions_are_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        Residual([VQ(4, 8), VQ(4, 8)], depth=2)
    with pytest.raises(ValueError, match="one dim"):
        Residual([VQ(4, 8), VQ(5, 8)])
    for inside in (Projected(VQ(2, 8), 4), IBQ(4, 8)):
        with pytest.raises(ValueError, match="through"):
            Residual([inside])
    with pytest.raises(ValueError, match="first and rest"):
        SplitResidual(VQ(4, 8), VQ(5, 8))
    with pytest.raises(ValueError, match="disentangle"):
        Product([VQ(4, 8), VQ(5, 8)], disentangle=True)
