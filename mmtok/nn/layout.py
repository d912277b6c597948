"""Memory layouts that torch recognises.

Legend: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def settled(x: Tensor) -> Tensor:
    """x [B, C, H, W] or [B, C, T, H, W] itself; on a CPU, channels-last memory in the strides that torch knows it by.

    An axis of size 1, such as a lone clip or frame, may have any stride, and after sums and views it has: torch then
    takes the tensor for channels-first, lays out the weights anew for every convolution, and so for all that follows.
    """
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    if not x.is_cpu or x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return x
    return channels_last(x)


def channels_last(x: Tensor) -> Tensor:
    """x [B, C, ...] in channels-last memory, copied only if it must be, in the strides that torch knows it by."""
    rows = x.movedim(1, -1)
    return rows.reshape(-1).view(rows.shape).movedim(-1, 1)
