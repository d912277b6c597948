"""Keep masks: every coding can write and read all of its masks, and refuses others."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.keep import Bitmap, BlockPrefix, FlatPrefix, Full, GridPrefix, Prefix, coding_bits, full_keep

CASES = [
    (Prefix(-1), ((1, 7),), math.log2(7)),
    (Prefix(2), ((2, 7, 3),), math.log2(7)),
    (Prefix(1), ((4, 3, 3),), 2.0),
    (Prefix(1), ((4, 2), (4, 8)), 2.0),
    (FlatPrefix(), ((1, 1, 1), (1, 2, 2), (2, 4, 4)), math.log2(37)),
    (GridPrefix(), ((1, 2), (1, 4), (3, 8)), math.log2(3)),
    (BlockPrefix(), ((1, 3, 5),), 3 * math.log2(5)),
    (Bitmap(), ((2, 3), (1, 2, 2)), 7.0),
]


@pytest.mark.parametrize(("coding", "shapes", "bits"), CASES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_symbols_and_masks_are_inverse(coding, shapes, bits, data) -> None:
    sizes = coding.sizes(shapes)
    rows = [[data.draw(st.integers(0, n - 1)) for n in sizes] for _ in range(3)]
    symbols = torch.tensor(rows)
    masks = coding.masks(symbols, shapes)
    assert torch.equal(coding.symbols(masks, shapes), symbols)
    for mask, shape in zip(masks, shapes, strict=True):
        mask.expand(-1, *shape)  # broadcastable to its grid
    assert coding_bits(coding, shapes) == pytest.approx(bits)


def test_masks_outside_the_family_are_refused() -> None:
    holes = (torch.tensor([[[True, False, True]]]),)
    for coding in (Prefix(-1), Full(), FlatPrefix()):
        with pytest.raises(ValueError, match="keep"):
            coding.symbols(holes, ((1, 3),))
    with pytest.raises(ValueError, match="at least one"):
        Prefix(-1).symbols((torch.zeros(1, 1, 3, dtype=torch.bool),), ((1, 3),))
    with pytest.raises(ValueError, match="differ"):
        Prefix(-1).sizes(((1, 3), (1, 4)))


def test_full_is_free() -> None:
    shapes = ((1, 4), (1, 8))
    assert coding_bits(Full(), shapes) == 0
    assert Full().symbols(full_keep(shapes, 2), shapes).shape == (2, 0)


def test_flat_prefix_cuts_grid_by_grid_and_position_by_position() -> None:
    first, second = FlatPrefix().masks(torch.tensor([[3]]), ((1, 2), (2, 2)))
    assert first.tolist() == [[[True, True]]]
    assert second.tolist() == [[[True, False], [True, False]]]
