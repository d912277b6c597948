"""Exponential moving average of a tokenizer's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """average = decay * average + (1 - decay) * parameter, for trainable floating-point parameters.

    Buffers are never averaged: whoever swaps the averages in uses the live buffers, so that integers (FSQ levels) stay
    what they are. Nothing is averaged before `start`; the first update copies.

    decay   0.999 for runs below 100 000 updates; 0.9999 forgets its start only after several 10 000
    period  update every so many generator steps
    start   first step that counts
    ramp    the n-th update uses min(decay, (1 + n) / (10 + n)), so that a short run forgets its first weights
    """

    def __init__(self, decay: float = 0.999, period: int = 1, start: int = 0, ramp: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay must lie in [0, 1), got {decay}")
        if period < 1:
            raise ValueError(f"ema.period must be at least 1, got {period}")
        self.decay, self.period, self.start, self.ramp = decay, period, start, ramp
        self.averages: dict[str, Tensor] = {}
        self.updates = 0
        self.swapped = False

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes the parameters after generator update number `step` (1-based)."""
        if step < self.start or step % self.period:
            return
        live = {name: p for name, p in module.named_parameters() if p.requires_grad and p.is_floating_point()}
        if not self.updates:
            self.averages = {name: p.detach().clone() for name, p in live.items()}
        else:
            averages = [self.averages[name] for name in live]
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.ramp else self.decay
            torch._foreach_lerp_(averages, [p.detach() for p in live.values()], 1 - decay)
        self.updates += 1

    def swap(self, module: nn.Module) -> None:
        """Exchanges parameters and averages (by pointer); does nothing before the first update."""
        parameters = dict(module.named_parameters())
        for name, average in self.averages.items():
            parameter = parameters[name]
            self.averages[name], parameter.data = parameter.data, average
        self.swapped = bool(self.averages) and not self.swapped

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module with averaged parameters; leaves alone a module that already has them."""
        if self.swapped:
            yield
            return
        self.swap(module)
        try:
            yield
        finally:
            self.swap(module)

    def state_dict(self) -> dict[str, Any]:
        return {"averages": dict(self.averages), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any], module: nn.Module) -> None:
        parameters = dict(module.named_parameters())
        unknown = [name for name in state["averages"] if name not in parameters]
        if unknown:
            raise ValueError(f"checkpoint: EMA of {unknown[0]}, which this tokenizer does not have")
        self.averages = {name: value.to(parameters[name]).clone() for name, value in state["averages"].items()}
        self.updates = state["updates"]
