"""What discriminators of several parts return, and how several become one.

Legend: B batch, C channels, T samples.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

MapChoice = Literal["hidden", "all", "vocos"]


class Verdict(NamedTuple):
    """Logits of any shape, one tensor a sub-discriminator, and the feature maps of each."""

    logits: list[Tensor]
    maps: list[list[Tensor]]


class Panel(nn.Module):
    """Several discriminators as one; the sub-discriminators keep their order.

    networks  each: x -> Verdict
    """

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Verdict:
        found: list[Verdict] = [network(x) for network in self.networks]
        return Verdict([logits for v in found for logits in v.logits], [maps for v in found for maps in v.maps])


class Stack(nn.Module):
    """Convolutions with a leaky ReLU behind each but the last, which gives the logits.

    slope  of the ReLU below zero
    maps   "hidden": outputs of all but the last; "all": of all; "vocos": of all but the first
    """

    def __init__(self, layers: list[nn.Module], slope: float, maps: MapChoice) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.slope, self.maps = slope, maps

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        *inner, last = self.layers
        hidden = []
        for layer in inner:
            x = F.leaky_relu(layer(x), self.slope)
            hidden.append(x)
        logits = last(x)
        return logits, chosen([hidden], logits, self.maps)


def chosen(stacks: list[list[Tensor]], logits: Tensor, maps: MapChoice) -> list[Tensor]:
    """The maps of parallel stacks that feature matching compares."""
    hidden = [found for stack in stacks for found in (stack[1:] if maps == "vocos" else stack)]
    return hidden if maps == "hidden" else [*hidden, logits]


def mono(x: Tensor) -> Tensor:
    """[B, C, T] -> [B * C, 1, T]: every channel is judged alone."""
    return x.reshape(-1, 1, x.shape[-1])


def levelled(x: Tensor) -> Tensor:
    """x without its mean, scaled to a peak of 0.8 (DAC, Vocos)."""
    x = x - x.mean(-1, keepdim=True)
    return 0.8 * x / (x.abs().amax(-1, keepdim=True) + 1e-9)
