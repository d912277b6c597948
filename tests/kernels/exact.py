"""What float64 says, and which of its rows float32 may miss."""

import torch
from torch import Tensor

from mmtok.kernels import native

PATHS = (*native.paths(), "torch")


def squared_distances(x: Tensor, book: Tensor) -> Tensor:
    """float64 [N, V] from differences, so that equal codes have equal distances."""
    x, book = x.double(), book.double()
    if len(book) * x.numel() < 1 << 20:
        return (x[:, None] - book).square().sum(2)
    return torch.cdist(x, book, compute_mode="donot_use_mm_for_euclid_dist").square()


def check_nearest(x: Tensor, book: Tensor, codes: Tensor, distance: Tensor) -> float:
    """Asserts codes [N, k] and distances against float64; returns the share of excused rows."""
    exact = squared_distances(x, book)
    k = codes.shape[1]
    assert codes.dtype == torch.int64 and distance.dtype == torch.float32
    found = exact.gather(1, codes)
    torch.testing.assert_close(distance.double(), found, rtol=1e-5, atol=1e-30)
    assert all(len(set(row)) == k for row in codes.tolist())
    best, order = torch.sort(exact, dim=1, stable=True)
    differ = (codes != order[:, :k]).any(1)
    scale = x.double().square().sum(1) + book.double().square().sum(1).max()
    excused = ((found - best[:, :k]).abs() < 4e-6 * scale[:, None]).all(1)
    assert bool((~differ | excused).all())
    return float(differ.float().mean())
