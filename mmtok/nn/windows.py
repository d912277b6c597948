"""Working through a long signal window by window, with networks that look both ways but not far.

Legend: B batch, C channels, T time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmtok.nn.stream import join, run

WINDOW = 5 << 20  # values: 20 MB in float32 (measured)


@dataclass(frozen=True)
class Local:
    """What is known of a layer [B, C, T] -> [B, C', about T * rate], zeros around the whole signal.

    reach  steps of its input that it looks to either side, counted generously
    rate   steps that it gives for one of its input
    width  values of its largest activation for a step of its input
    """

    reach: int
    rate: Fraction
    width: int


def run_in_windows(layers: Sequence[nn.Module], x: Tensor, known: Sequence[Local], values: int = WINDOW) -> Tensor:
    """A whole signal [B, C, T] through layers: the result of `run`. Where no gradient is asked for on a CPU, those with
    large activations see it in overlapping windows, of which the middle is kept.

    Activations of a long signal do not fit the caches, and memory fresh from the system costs as much time as the
    convolutions over few channels. Deep layers, with few steps and many channels, are better off with all of it.

    values  of the largest activation in a window
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return run(layers, x, None)
    rates = [Fraction(1)]
    for layer in known:
        rates.append(rates[-1] * layer.rate)
    sizes = [len(x) * x.shape[-1] * layer.width * rate for layer, rate in zip(known, rates, strict=False)]
    large = [i for i, size in enumerate(sizes) if size > values]
    if not large:
        return run(layers, x, None)
    first, last = large[0], large[-1] + 1
    x = run(layers[:first], x, None)
    inside = [rate / rates[first] for rate in rates[first : last + 1]]
    whole = math.lcm(*(rate.denominator for rate in inside))  # steps that begin a step of every layer
    reach = sum(layer.reach / rate for layer, rate in zip(known[first:last], inside, strict=False))
    margin = math.ceil(reach / whole) * whole
    length, parts = x.shape[-1], []
    step = math.ceil(length / math.ceil(max(sizes) / values) / whole) * whole
    with parametrize.cached():  # weight normalization once, not once a window
        for at in range(0, length, step):
            begin, end = max(0, at - margin), at + step
            y = run(layers[first:last], x[..., begin : end + margin].clone(), None)  # they may work in place
            stop = int((end - begin) * inside[-1]) if end < length else y.shape[-1]
            parts.append(y[..., int((at - begin) * inside[-1]) : stop])
    return run(layers[last:], join(*parts), None)
