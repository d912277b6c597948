"""Haar wavelets over video blocks: the first and last step of the Cosmos tokenizers.

Legend: B batch, C channels, T frames, H W pixels, p patch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.nn.conv3d import DropFront, FrontFrames
from mmtok.nn.stream import Causal, Stream


class HaarPatch3d(Causal):
    """x [B, C, 1 + p n, H, W] -> [B, p^3 C, 1 + n, H / p, W / p].

    The first frame is repeated p times, so that it makes a block of its own. log2(p) levels of means and half
    differences along T, H and W; channels are ordered (band of the last level, ..., band of the first level, C), a
    band being (T, H, W) with the mean first.

    patch  p, a power of two
    """

    def __init__(self, patch: int) -> None:
        super().__init__()
        check_patch(patch)
        self.patch = patch
        self.front = FrontFrames(patch - 1)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole video, or its next frames: a multiple of p, plus one at the beginning."""
        x = self.front(x, stream)
        for _ in range(self.patch.bit_length() - 1):
            x = haar(x)
        return x


class HaarUnpatch3d(Causal):
    """The inverse of `HaarPatch3d`: [B, p^3 C, 1 + n, h, w] -> [B, C, 1 + p n, p h, p w]."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        check_patch(patch)
        self.patch = patch
        self.drop = DropFront(patch - 1)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole video, or its next frames."""
        for _ in range(self.patch.bit_length() - 1):
            x = inverse_haar(x)
        return self.drop(x, stream)


def haar(x: Tensor) -> Tensor:
    """One level: [B, C, T, H, W] -> [B, 8 C, T / 2, H / 2, W / 2], bands LLL, LLH, LHL, ... in (T, H, W)."""
    for axis in (-1, -2, -3):
        a, b = x.unflatten(axis, (-1, 2)).unbind(axis)
        x = torch.stack([a + b, a - b], 1) / 2
    return x.flatten(1, 4)


def inverse_haar(x: Tensor) -> Tensor:
    """One level back: [B, 8 C, t, h, w] -> [B, C, 2 t, 2 h, 2 w]."""
    x = x.unflatten(1, (2, 2, 2, -1))
    for axis in (-3, -2, -1):
        low, high = x.unbind(1)
        x = torch.stack([low + high, low - high], axis).flatten(axis - 1, axis)
    return x


def check_patch(patch: int) -> None:
    """ValueError for a patch that is no power of two."""
    if patch < 1 or patch & (patch - 1):
        raise ValueError(f"patch: {patch} is not a power of two")
