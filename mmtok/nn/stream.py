"""Running causal modules over a signal that arrives in pieces.

Legend: B batch, C channels, T time.

A module that looks back in time derives from `Causal`: its `forward(x, stream=None)` processes a whole signal without
a stream, and the next piece of one with a stream, in which it keeps what it must remember. Pieces may have any length,
zero included; what comes out of all pieces, laid end to end, equals the output for the whole signal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Stream:
    """What the modules of a network remember between two pieces of a signal.

    memory  per module, tensors that are replaced, never changed in place
    last    the current piece ends the signal: pad its end as for a whole signal and hold nothing back
    """

    def __init__(self) -> None:
        self.memory: dict[nn.Module, Any] = {}
        self.last = False

    def next(self, last: bool = False) -> Stream:
        """A copy for the next piece; the old one stays usable, so that a caller can go back."""
        new = Stream()
        new.memory = dict(self.memory)
        new.last = last
        return new


class Causal(nn.Module):
    """Base of modules that take a stream: `forward(x [B, C, T], stream=None)`."""


def run(layers: Iterable[nn.Module], x: Tensor, stream: Stream | None) -> Tensor:
    """Applies layers in turn; those that remember get the stream."""
    for layer in layers:
        x = layer(x, stream) if isinstance(layer, Causal) else layer(x)
    return x


def add_aligned(owner: nn.Module, a: Tensor, b: Tensor, stream: Stream | None) -> Tensor:
    """a + b [B, C, T] where one of two branches may be ahead of the other; the surplus waits in the stream."""
    if stream is None:
        return a + b
    held = stream.memory.get(owner)
    if held is not None:
        a, b = torch.cat([held[0], a], -1), torch.cat([held[1], b], -1)
    n = min(a.shape[-1], b.shape[-1])
    stream.memory[owner] = (a[..., n:], b[..., n:])
    return a[..., :n] + b[..., :n]
