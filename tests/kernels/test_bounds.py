"""Wide vectors, which some paths search by bounds on rounded products: hard cases for those bounds, on every path."""

import pytest
import torch
from exact import PATHS, check_nearest

from mmtok.kernels import forced, nearest_code, residual_encode


def _gaussian(n, v, d):
    return torch.randn(n, d), torch.randn(v, d)


def _far_from_the_origin(n, v, d):
    return torch.randn(n, d) + 50, torch.randn(v, d) + 50


def _one_huge_code(n, v, d):
    book = torch.randn(v, d)
    book[v // 2] *= 1e4
    return torch.randn(n, d), book


def _tight_clusters(n, v, d):
    """More codes within rounding of each other than a list of candidates holds."""
    centres = torch.randn(3, d) * 10
    return centres[torch.randint(3, (n,))] + 1e-2 * torch.randn(n, d), centres[
        torch.randint(3, (v,))] + 1e-2 * torch.randn(v, d)


def _smallest_floats(n, v, d):
    return torch.randn(n, d) * 1e-18, torch.randn(v, d) * 1e-18


def _rows_on_codes(n, v, d):
    book = torch.randn(v, d)
    return book[torch.randint(v, (n,))], book


CASES = (_gaussian, _far_from_the_origin, _one_huge_code, _tight_clusters, _smallest_floats, _rows_on_codes)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("d", [32, 63, 130])
def test_hard_cases(path, case, d):
    torch.manual_seed(d)
    x, book = case(90, 310, d)
    with forced(path):
        codes, distance = nearest_code(x, book)
    check_nearest(x, book, codes[:, None], distance[:, None])


@pytest.mark.parametrize("path", PATHS)
def test_coinciding_codes_and_bad_rows(path):
    torch.manual_seed(0)
    x, book = torch.randn(41, 48), torch.randn(5, 48).repeat(80, 1)  # every code eighty times
    x[7], x[8, 3] = float("nan"), float("nan")
    with forced(path):
        codes, _ = nearest_code(x, book)
        same = nearest_code(x, torch.ones(200, 48))[0]
    good = ~x.isnan().any(1)
    expected = torch.cdist(x[good].double(), book[:5].double()).argmin(1)
    assert torch.equal(codes[good], expected) and codes.max() < 400 and codes.min() >= 0
    assert not same[good].any()


@pytest.mark.parametrize("path", PATHS)
def test_depths_of_wide_vectors(path):
    """Each depth's code is the nearest to what the depths before left over."""
    torch.manual_seed(0)
    x, books = torch.randn(77, 96).bfloat16(), torch.randn(4, 200, 96) * torch.tensor([1, 0.7, 0.5, 0.3])[:, None, None]
    depth = torch.arange(77) % 5
    with forced(path):
        codes, total = residual_encode(x, books, depth)
    left = x.float()
    for q in range(4):
        on = depth > q
        step = codes[on, q]
        exact = torch.cdist(left[on].double(), books[q].double()).square()
        gap = exact.gather(1, step[:, None])[:, 0] - exact.min(1).values
        assert bool((gap < 4e-6 * 400).all()) and not codes[~on, q].any()
        left[on] -= books[q][step]
    torch.testing.assert_close(total, x.float() - left, rtol=1e-5, atol=1e-5)
