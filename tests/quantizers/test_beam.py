"""Beam search over residual depths: greedy at width 1, exhaustive at full width, never worse in between."""

from __future__ import annotations

import itertools

import pytest
import torch

from mmtok.keep import prefix_mask
from mmtok.kernels import residual_encode
from mmtok.quantizers.beam import beam_encode
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.vq import VQ


def data(n: int = 200, depths: int = 3, size: int = 8, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    scale = 0.6 ** torch.arange(depths).view(-1, 1, 1)
    return torch.randn(n, dim, generator=g), torch.randn(depths, size, dim, generator=g) * scale


def error(x: torch.Tensor, tables: torch.Tensor, codes: torch.Tensor, depth: int) -> torch.Tensor:
    return (x - sum(tables[q][codes[:, q]] for q in range(depth))).square().sum(1)


def test_width_one_is_greedy() -> None:
    x, tables = data()
    assert torch.equal(beam_encode(x, tables, None, 1), residual_encode(x, tables)[0])


def test_full_width_finds_the_best_of_all_sums() -> None:
    x, tables = data()
    ways = itertools.product(range(8), repeat=3)
    sums = torch.stack([sum(tables[q][c] for q, c in enumerate(way)) for way in ways])
    best = torch.cdist(x.double(), sums.double()).square().amin(1)
    found = error(x.double(), tables.double(), beam_encode(x, tables, None, 64), 3)
    torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-6)  # sums of float32


def test_wider_beams_come_closer() -> None:
    x, tables = data(2000, 6, 32)
    greedy, four, sixteen = (error(x, tables, beam_encode(x, tables, None, w), 6).mean() for w in (1, 4, 16))
    assert sixteen < four < 0.95 * greedy


def test_each_vector_is_searched_at_its_own_depth_and_alone() -> None:
    x, tables = data()
    depth = torch.arange(len(x)) % 4
    codes = beam_encode(x, tables, depth, 4)
    for q in range(4):
        mine = depth == q
        assert bool((codes[mine, q:] == 0).all())
        assert torch.equal(codes[mine, :q], beam_encode(x[mine], tables[:q], None, 4)[:, :q]) if q else True
    assert torch.equal(codes[7:8], beam_encode(x[7:8], tables, depth[7:8], 4))
    assert beam_encode(x[:0], tables, None, 4).shape == (0, 3)


def test_residual_searches_in_eval_and_decodes_what_it_says() -> None:
    torch.manual_seed(0)
    wide = Residual([VQ(6, 16) for _ in range(4)], beam=8)
    for q in range(4):
        wide.at(q).codebook.data.copy_(torch.randn(16, 6) * 0.6**q)
    greedy = Residual([VQ(6, 16) for _ in range(4)])
    greedy.load_state_dict(wide.state_dict())
    z = torch.randn(3, 6, 50)
    keep = (prefix_mask(torch.tensor([1, 3, 4]), 4)[:, :, None],)
    ours, theirs = (quantizer.eval()(z, keep) for quantizer in (wide, greedy))
    assert torch.equal(wide.decode(ours.grids, keep), ours.z)
    errors = [[float((z[i] - out.z[i]).square().mean()) for i in range(3)] for out in (ours, theirs)]
    assert errors[0][0] == pytest.approx(errors[1][0])  # a single depth leaves no choice
    assert errors[0][1] < errors[1][1] and errors[0][2] < errors[1][2]
    assert torch.equal(wide.train()(z, keep).grids[0], greedy.train()(z, keep).grids[0])


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ValueError, match="beam: the search takes plain VQ"):
        Residual([FSQ([3, 3]), FSQ([3, 3])], through=True, beam=2)
    with pytest.raises(ValueError, match="beam must be at least 1"):
        Residual([VQ(4, 8)], beam=0)
