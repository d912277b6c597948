"""Residual search, gathers and sums by code against the torch reference."""

import pytest
import torch
from exact import PATHS
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.kernels import code_sums, forced, gather_add, nearest_code, reference, residual_encode


def _well_apart(x, books, codes):
    """Rows none of whose depths was decided within rounding; after a near tie later depths may follow either code."""
    residual, apart = x.double(), torch.ones(len(x), dtype=torch.bool)
    for q, book in enumerate(books.double()):
        two = torch.cdist(residual, book).square().topk(min(2, len(book)), largest=False).values
        if len(book) > 1:
            apart &= (two[:, 1] - two[:, 0]) > 4e-6 * (residual.square().sum(1) + book.square().sum(1).max())
        residual = residual - book[codes[:, q]]
    return apart


@settings(max_examples=80, deadline=None)
@given(
    path=st.sampled_from(PATHS[:-1] or PATHS), n=st.integers(0, 60), q=st.integers(0, 5), v=st.integers(1, 200),
    d=st.integers(1, 40), half=st.booleans(), with_depth=st.booleans(), seed=st.integers(0, 1 << 30),
)
def test_residual_matches_the_reference(path, n, q, v, d, half, with_depth, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=draw) + 1
    books = torch.randn(q, v, d, generator=draw)
    books = books.bfloat16() if half else books
    depth = torch.randint(0, q + 2, (n,), generator=draw) if with_depth else None
    with forced(path):
        codes, total = residual_encode(x, books, depth)
    wanted, wanted_total = reference.residual_encode(x, books, depth)
    apart = _well_apart(x, books, reference.residual_encode(x, books, None)[0])
    assert codes.shape == (n, q) and torch.equal(codes[apart], wanted[apart])
    assert torch.equal(total[apart], wanted_total[apart])
    if depth is not None:
        unused = torch.arange(q) >= depth[:, None]
        assert not codes[unused].any()


@pytest.mark.parametrize("path", PATHS)
def test_residual_is_nearest_code_depth_by_depth(path):
    torch.manual_seed(0)
    x, books = torch.randn(3000, 16), torch.randn(3, 1030, 16)
    with forced(path):
        codes, total = residual_encode(x, books)
        residual = x.clone()
        for q, book in enumerate(books):
            assert torch.equal(codes[:, q], nearest_code(residual, book)[0])
            gather_add(codes[:, q], book, residual, alpha=-1)
        torch.testing.assert_close(gather_add(codes, books), total)
    torch.testing.assert_close(x - residual, total, rtol=1e-5, atol=1e-5)


@settings(max_examples=80, deadline=None)
@given(
    path=st.sampled_from(PATHS), n=st.integers(0, 200), v=st.integers(1, 90), d=st.integers(1, 30),
    half=st.booleans(), masked=st.booleans(), threads=st.integers(1, 4), seed=st.integers(0, 1 << 30),
)
def test_sums_match_one_hot_products(path, n, v, d, half, masked, threads, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(d, n, generator=draw).T
    x = x.bfloat16() if half else x
    codes = torch.randint(0, v, (n,), generator=draw)
    mask = torch.rand(n, generator=draw) > 0.4 if masked else None
    torch.set_num_threads(threads)
    with forced(path):
        counts, sums = code_sums(x, codes, v, mask)
    one_hot = torch.nn.functional.one_hot(codes, v).double()
    one_hot = one_hot if mask is None else one_hot * mask[:, None]
    assert torch.equal(counts.double(), one_hot.sum(0))
    torch.testing.assert_close(sums.double(), one_hot.T @ x.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_sums_are_the_same_on_any_number_of_threads(path):
    torch.manual_seed(0)
    x, codes = torch.randn(60_000, 24), torch.randint(0, 1000, (60_000,))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with forced(path):
            results.append(code_sums(x, codes, 1000)[1])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [-1, 20])
def test_codes_out_of_range_raise_before_anything_is_written(path, bad):
    books, out = torch.randn(2, 20, 3), torch.zeros(6, 3)
    codes = torch.zeros(6, 2, dtype=torch.int64)
    codes[5, 1] = bad
    with forced(path), pytest.raises(IndexError):
        gather_add(codes, books, out)
    assert not out.any()
    with forced(path), pytest.raises(IndexError):
        code_sums(torch.randn(6, 3), codes[:, 1], 20)
    mask = torch.arange(6) < 5
    with forced(path):
        assert code_sums(torch.ones(6, 3), codes[:, 1], 20, mask)[0][0] == 5


@pytest.mark.parametrize("path", PATHS)
def test_gather_into_a_view(path):
    torch.manual_seed(0)
    wide, book, codes = torch.zeros(50, 14), torch.randn(30, 7), torch.randint(0, 30, (50,))
    with forced(path):
        gather_add(codes, book, wide[:, ::2], alpha=2)
    assert torch.equal(wide[:, ::2], 2 * book[codes]) and not wide[:, 1::2].any()
    with pytest.raises(ValueError, match="out must be"):
        gather_add(codes, book, wide)
