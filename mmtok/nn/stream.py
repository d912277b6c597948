"""Running causal modules over a signal that arrives in pieces.

Legend: B batch, C channels, T time.

A module that looks back in time derives from `Causal`: its `forward(x, stream=None)` processes a whole signal without
a stream, and the next piece of one with a stream, in which it keeps what it must remember. Pieces may have any length,
zero included; what comes out of all pieces, laid end to end, equals the output for the whole signal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

PIECE = 1 << 22  # values: 16 MB in float32


class Stream:
    """What the modules of a network remember between two pieces of a signal.

    memory  per module (or part of one), tensors that are replaced, never changed in place
    last    the current piece ends the signal: pad its end as for a whole signal and hold nothing back
    """

    def __init__(self) -> None:
        self.memory: dict[object, Any] = {}
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


def run_in_pieces(layers: Sequence[nn.Module], x: Tensor, widths: Sequence[float], values: int = PIECE) -> Tensor:
    """A whole signal [B, C, T] through layers that take streams: the result of `run`. Where no gradient is asked for,
    those with large activations see it piece by piece.

    Activations of a long signal do not fit the caches of a CPU, and memory fresh from the system costs as much time as
    the convolutions over few channels. Deep layers, with few frames and many channels, are better off with all of it.

    widths  values of the largest activation of each layer for a step of x
    values  of the largest activation in a piece
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return run(layers, x, None)
    sizes = [len(x) * x.shape[-1] * width for width in widths]
    large = [i for i, size in enumerate(sizes) if size > values]
    if not large:
        return run(layers, x, None)
    first, last = large[0], large[-1] + 1
    x = run(layers[:first], x, None)
    step = math.ceil(x.shape[-1] / math.ceil(max(sizes) / values))
    stream, parts = Stream(), []
    with parametrize.cached():  # weight normalization once, not once a piece
        for at in range(0, x.shape[-1], step):
            stream.last = at + step >= x.shape[-1]
            parts.append(run(layers[first:last], x[..., at : at + step], stream))
    return run(layers[last:], join(*parts), None)


def in_chunks(
    network: nn.Module, x: Tensor, first: int | None, rest: int | None, stream: Stream | None = None
) -> Tensor:
    """network(x [B, C, T, H, W]), `first` and then `rest` frames at a time; all at once without numbers."""
    if not isinstance(network, Causal):
        raise ValueError(f"tokenizer: {type(network).__name__} is no causal network (mmtok.nn.stream.Causal)")
    if first is None or rest is None or x.shape[2] <= first:
        return network(x, stream)
    counts = [first, *[rest] * ((x.shape[2] - first) // rest)]
    counts += [x.shape[2] - sum(counts)] if x.shape[2] > sum(counts) else []
    if stream is None:
        stream, ends = Stream(), True
    else:
        ends = stream.last
    parts = []
    for index, part in enumerate(x.split(counts, 2)):
        stream.last = ends and index == len(counts) - 1
        parts.append(network(part, stream))
    stream.last = ends
    return torch.cat(parts, 2)


def join(*parts: Tensor) -> Tensor:
    """[B, C, T_i] end to end, in the memory layout of the longest."""
    parts = tuple(part for part in parts if part.shape[-1]) or parts[-1:]
    if len(parts) == 1:
        return parts[0]
    longest = max(parts, key=lambda part: part.shape[-1])
    if longest.stride(1) == 1 and longest.shape[1] > 1:  # channels last
        return torch.cat([part.transpose(1, 2) for part in parts], 1).transpose(1, 2)
    return torch.cat(parts, -1)


def add_aligned(owner: nn.Module, a: Tensor, b: Tensor, stream: Stream | None) -> Tensor:
    """a + b [B, C, T] where one of two branches may be ahead of the other; the surplus waits in the stream."""
    if stream is None:
        return a + b
    held = stream.memory.get(owner)
    if held is not None:
        a, b = join(held[0], a), join(held[1], b)
    n = min(a.shape[-1], b.shape[-1])
    stream.memory[owner] = (a[..., n:].clone(), b[..., n:].clone())  # a view would keep all of them
    return a[..., :n] + b[..., :n]
