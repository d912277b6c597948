"""FSQ: literal codes, bounds and digit order."""

from __future__ import annotations

import itertools

import pytest
import torch
from vector_quantize_pytorch import FSQ as LibraryFSQ

from mmtok.quantizers.fsq import FSQ


def test_digits_and_values_are_fixed_by_the_levels() -> None:
    quantizer = FSQ([3, 4]).eval()
    # channel 0 is the least significant digit; even levels run from -L/2 to L/2 - 1
    z = torch.tensor([[-9.0, -9.0], [9.0, -9.0], [0.0, 0.0], [9.0, 9.0]]).T[None]
    out = quantizer(z)
    assert out.grids[0].flatten().tolist() == [0, 2, 1 + 3 * 2, 2 + 3 * 3]
    assert out.z[0].T.tolist() == [[-1.0, -1.0], [1.0, -1.0], [0.0, 0.0], [1.0, 0.5]]


@pytest.mark.parametrize("levels", [[8, 6, 5], [2, 2, 2], [5], [7, 5, 5, 5]])
def test_codes_and_values_are_a_bijection(levels) -> None:
    quantizer = FSQ(levels).eval()
    (size,) = quantizer.codebook_sizes[0]
    codes = torch.arange(size).view(1, 1, -1)
    values = quantizer.decode((codes,))
    assert len(set(map(tuple, values[0].T.tolist()))) == size
    digits = list(itertools.product(*(range(level) for level in reversed(levels))))
    half = torch.tensor([level // 2 for level in levels])
    expected = torch.tensor([d[::-1] for d in digits]).sub(half) / half
    assert torch.equal(values[0].T, expected)


def test_every_level_can_be_reached_and_no_other() -> None:
    quantizer = FSQ([8, 5]).eval()
    z = torch.linspace(-6, 6, 4001)
    codes = quantizer(torch.stack([z, z])[None]).grids[0].flatten()
    assert set((codes % 8).tolist()) == set(range(8))
    assert set((codes // 8).tolist()) == set(range(5))
    assert (codes.diff() >= 0).all() or set((codes % 8).tolist()) == set(range(8))


def test_codes_equal_the_public_library_away_from_borders() -> None:
    levels = [8, 5, 5, 5]
    theirs, ours = LibraryFSQ(levels, channel_first=True).eval(), FSQ(levels).eval()
    z = torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(0))
    value, codes = theirs(z)
    out = ours(z)
    # a code may differ only where the bounded value lies on a border between two levels
    assert (out.grids[0][:, 0] == codes.long()).float().mean() > 0.99
    same = (out.grids[0] == codes.long()[:, None]).expand_as(value)
    torch.testing.assert_close(out.z[same], value[same])


def test_nan_is_refused_in_use_and_bad_levels_at_once() -> None:
    with pytest.raises(ValueError, match="NaN"):
        FSQ([4, 4]).eval()(torch.full((1, 2, 3), torch.nan))
    with pytest.raises(ValueError, match="levels"):
        FSQ([4, 1])
