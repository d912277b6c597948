"""nearest_code on every path: exact codes, ties, any shape, dtype and stride."""

import pytest
import torch
from exact import PATHS, check_nearest, squared_distances
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.kernels import forced, nearest_code


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from(PATHS), n=st.integers(0, 70), v=st.integers(1, 300), d=st.integers(1, 45),
    k=st.integers(1, 5), x_half=st.booleans(), book_half=st.booleans(), transposed=st.booleans(),
    mean=st.sampled_from((0.0, 7.0)), seed=st.integers(0, 1 << 30),
)
def test_any_shape(path, n, v, d, k, x_half, book_half, transposed, mean, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=draw) + mean
    book = torch.randn(v, d, generator=draw) + mean
    x = x.bfloat16() if x_half else x
    book = book.bfloat16() if book_half else book
    x = x.T.contiguous().T if transposed else x
    k = min(k, v)
    with forced(path):
        codes, distance = nearest_code(x, book, k)
    assert codes.shape == distance.shape == ((n,) if k == 1 else (n, k))
    check_nearest(x, book, codes.view(n, k), distance.view(n, k))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("n", "v", "d"), [(1500, 5000, 8), (700, 1100, 64), (300, 700, 257)])
@pytest.mark.parametrize("mean", [0.0, 200.0])
def test_float64_codes_with_a_shared_mean(path, n, v, d, mean):
    torch.manual_seed(0)
    x, book = torch.randn(n, d) + mean, torch.randn(v, d) + mean
    with forced(path):
        codes, distance = nearest_code(x, book)
    excused = check_nearest(x, book, codes[:, None], distance[:, None])
    assert excused <= 1e-3
    # the plain expansion, for comparison, misplaces rows that no tolerance excuses
    if mean and d == 8:
        plain = (book.square().sum(1) / 2 - x @ book.T).argmin(1)
        assert (plain != squared_distances(x, book).argmin(1)).float().mean() > 0.01


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [2, 37, 512, 5000])
def test_lowest_index_wins_ties(path, size):
    torch.manual_seed(1)
    book = torch.randn(size, 6)
    twice = torch.cat([book, book, book])[torch.randperm(3 * size)]
    first = torch.full((3 * size,), 3 * size)
    same = (twice[:, None] == twice[None]).all(2) if size < 600 else None
    x = twice[torch.randperm(3 * size)[:200]]
    with forced(path):
        codes, distance = nearest_code(x, twice)
        ranked = nearest_code(x, twice, 3)[0]
    equal = (x[:, None] == twice[None]).all(2)
    first = equal.float().argmax(1)
    assert torch.equal(codes, first) and not distance.any()
    assert torch.equal(ranked, equal.nonzero()[:, 1].view(-1, 3))
    assert same is None or bool(same.sum(1).eq(3).all())


@pytest.mark.parametrize("path", PATHS)
def test_constant_codebook_and_rows(path):
    with forced(path):
        assert nearest_code(torch.ones(40, 3), torch.ones(999, 3))[0].eq(0).all()
        assert nearest_code(torch.ones(40, 3), torch.ones(999, 3), 4)[0].eq(torch.arange(4)).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("k", [1, 3])
def test_bad_rows_stay_in_range_and_alone(path, k):
    torch.manual_seed(2)
    x, book = torch.randn(33, 9), torch.randn(77, 9)
    with forced(path):
        good = nearest_code(x, book, k)[0]
        x[5], x[6, 2], x[7] = torch.nan, torch.inf, -torch.inf
        codes = nearest_code(x, book, k)[0]
    assert codes.min() >= 0 and codes.max() < 77
    rest = torch.ones(33, dtype=torch.bool)
    rest[5:8] = False
    assert torch.equal(codes[rest], good[rest])


@pytest.mark.parametrize("path", PATHS)
def test_codes_do_not_depend_on_the_batch(path):
    torch.manual_seed(3)
    x, book = torch.randn(501, 12), torch.randn(2100, 12)
    with forced(path):
        together = nearest_code(x, book)
        alone = [nearest_code(row[None], book) for row in x[::50]]
    assert torch.equal(together[0][::50], torch.cat([codes for codes, _ in alone]))
    torch.testing.assert_close(together[1][::50], torch.cat([distance for _, distance in alone]))


def test_mistakes_are_named():
    x, book = torch.randn(4, 3), torch.randn(5, 3)
    for call in (
        lambda: nearest_code(x, torch.randn(5, 4)), lambda: nearest_code(x, book, 6), lambda: nearest_code(x, book, 0),
        lambda: nearest_code(x.long(), book), lambda: nearest_code(x, book[:0]), lambda: nearest_code(x[0], book),
    ):
        with pytest.raises(ValueError, match="codebook"):
            call()
