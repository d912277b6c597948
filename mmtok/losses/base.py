"""What every loss term is, and how frozen teachers are held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mmtok.types import Batch, Reconstruction

Terms = dict[str, Tensor]


class Term(nn.Module):
    """One named, unweighted loss of an objective.

    `forward(recon, batch, step)` returns a float32 scalar, or a mapping when the term has parts; a part is named
    `<term>_<part>`. `parts` and `discriminator_parts` declare those names beforehand ("" stands for the term itself),
    so that a weight without a loss is found at once; a part that is not active yet may be left out. `stats` are
    detached scalars of the last call, logged as they are.

    Trainable parameters belong to the generator's optimizer, except those of the modules in `discriminators`.
    """

    parts: tuple[str, ...] = ("",)
    rescaled = False  # whether `scale` does anything
    balanceable = True  # whether a gradient balancer may take the place of `scale`
    discriminator_parts: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.stats: Terms = {}

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor | Terms:
        raise NotImplementedError

    def discriminator(self, recon: Reconstruction, batch: Batch, step: int) -> Terms:
        """Unweighted losses of this term's discriminators, by part; empty while they rest."""
        return {}

    def discriminators(self) -> list[nn.Module]:
        return []

    def scale(self, value: Tensor, others: Tensor, step: int) -> Tensor:
        """The term itself in its final strength, given the weighted sum of the terms that are not `rescaled`."""
        return value

    def bind(self, tokenizer: nn.Module) -> None:
        """Called once with the tokenizer that is trained, for terms that refer to its parameters."""


class Teacher(nn.Module):
    """A frozen network that an objective owns: always in eval mode, never trained, saved or averaged.

    It follows `.to(device)` like a child but is no child: `parameters()`, `state_dict()`, DDP and EMA pass it by.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._held = (module.requires_grad_(False).eval(),)  # a tuple hides it from nn.Module

    @property
    def module(self) -> nn.Module:
        return self._held[0]

    def forward(self, *args: Any) -> Any:
        return self._held[0](*args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Teacher:
        self._held[0]._apply(fn)
        return super()._apply(fn, recurse)


def head_of(recon: Reconstruction, head: str, term: str) -> Tensor:
    """recon.heads[head], or a ValueError that names the term and what there is."""
    if head not in recon.heads:
        raise ValueError(f"objective.terms: {term}.head is {head!r}, but the model's heads are {list(recon.heads)}")
    return recon.heads[head]


def reconstruction_of(recon: Reconstruction, term: str) -> Tensor:
    """recon.x, or a ValueError that names the term when the model reconstructs nothing."""
    if recon.x is None:
        raise ValueError(f"objective.terms.{term}: this model returns no reconstruction")
    return recon.x
