"""Fixed sine and cosine positions.

Legend: D width, t h w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sincos(places: Tensor, width: int, base: float = 10000.0) -> Tensor:
    """float32 [*places.shape, width]: sines, then cosines, of place / base^(2 i / width) (arXiv 1706.03762)."""
    rates = base ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = places.double()[..., None] * rates.to(places.device)
    return torch.cat([angles.sin(), angles.cos()], -1).float()


def sincos_grid(size: tuple[int, int, int], width: int) -> Tensor:
    """float32 [t, h, w, width]: the first half of the channels names w, the second h (MAE), plus all of them t."""
    t, h, w = (torch.arange(n) for n in size)
    rows = sincos(h, width // 2)[:, None].expand(-1, size[2], -1)
    columns = sincos(w, width // 2)[None].expand(size[1], -1, -1)
    return torch.cat([columns, rows], -1) + sincos(t, width)[:, None, None]
