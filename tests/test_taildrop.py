"""Length distributions of the tail-drop policies."""

from __future__ import annotations

import pytest
import torch

from mmtok.keep import BlockPrefix, Prefix
from mmtok.taildrop import PowerOfTwoTail, TruncatedNormalTail, UniformTail

SHAPES = ((1, 16),)


def drawn(tail, n: int = 20000) -> torch.Tensor:
    (mask,) = tail.sample(SHAPES, n, generator=torch.Generator().manual_seed(0))
    return mask.flatten(1).sum(1)


def test_uniform_draws_every_length_equally() -> None:
    counts = torch.bincount(drawn(UniformTail(min_length=3)), minlength=17)[1:]
    assert counts[:2].sum() == 0
    expected = 20000 / 14
    assert ((counts[2:] - expected).abs() < 5 * expected**0.5).all()


def test_powers_of_two_and_the_full_length() -> None:
    assert set(drawn(PowerOfTwoTail()).tolist()) == {1, 2, 4, 8, 16}
    assert set(PowerOfTwoTail(min_length=3).lengths(500, 12).tolist()) == {4, 8, 12}


def test_truncated_normal_follows_its_density() -> None:
    lengths = drawn(TruncatedNormalTail(mean=0.5, std=0.2)).double()
    grid = torch.arange(1, 17, dtype=torch.float64)
    edges = torch.special.ndtr((torch.arange(17, dtype=torch.float64) + 0.5 - 8) / 3.2)
    p = edges.diff() / (edges[-1] - edges[0])
    observed = torch.stack([(lengths == g).double().mean() for g in grid])
    assert (observed - p).abs().max() < 5 * (0.25 / 20000) ** 0.5
    assert lengths.min() >= 1 and lengths.max() <= 16


def test_one_length_per_batch_when_asked() -> None:
    (mask,) = UniformTail(per_batch=True).sample(SHAPES, 64)
    assert len(set(mask.flatten(1).sum(1).tolist())) == 1


def test_a_seeded_generator_repeats_itself_and_blocks_differ() -> None:
    tail = UniformTail(BlockPrefix())
    shapes = ((1, 5, 16),)
    first = tail.sample(shapes, 8, generator=torch.Generator().manual_seed(7))
    second = tail.sample(shapes, 8, generator=torch.Generator().manual_seed(7))
    assert torch.equal(first[0], second[0])
    assert first[0].sum(-1).unique().numel() > 5


def test_asked_lengths_outside_the_range_are_errors() -> None:
    tail = UniformTail(Prefix(-1), min_length=2)
    assert tail.keep(SHAPES, 3, 5, "cpu")[0].sum(-1).flatten().tolist() == [5, 5, 5]
    for length in (0, 1, 17):
        with pytest.raises(ValueError, match="2 to 16"):
            tail.keep(SHAPES, 1, length, "cpu")
    with pytest.raises(ValueError, match="min_length"):
        UniformTail(min_length=0)
    with pytest.raises(ValueError, match="std"):
        TruncatedNormalTail(std=0)
