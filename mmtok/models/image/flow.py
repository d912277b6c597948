"""Sampling a rectified flow: Euler steps with classifier-free or adaptive projected guidance.

Legend: B batch, *S axes of the samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, bool], Tensor]  # (x [B, *S], t [B], without condition) -> [B, *S]


class Sampler:
    """Noise at t = 1 -> sample at t = 0 in equal Euler steps.

    guidance   1: condition as it is; above: away from the unconditional velocity (CFG, arXiv 2207.12598)
    projected  adaptive projected guidance (APG, arXiv 2410.02416): the guiding difference has a momentum, is shortened
               to `threshold`, and its part along the conditional velocity is multiplied by `eta`
    """

    def __init__(
        self, steps: int = 25, guidance: float = 7.5, projected: bool = True, momentum: float = -0.5, eta: float = 0.0,
        threshold: float = 2.5,
    ) -> None:
        if steps < 1 or guidance < 1:
            raise ValueError(f"sampler: steps and guidance must be at least 1, got {steps} and {guidance}")
        self.steps, self.guidance, self.projected = steps, guidance, projected
        self.momentum, self.eta, self.threshold = momentum, eta, threshold

    def __call__(self, velocity: Velocity, noise: Tensor) -> Tensor:
        """[B, *S] -> [B, *S]."""
        x, running = noise, torch.zeros_like(noise)
        for step in range(self.steps):
            t = torch.full((len(x),), 1 - step / self.steps, device=x.device)
            v = velocity(x, t, False)
            if self.guidance != 1:
                difference = v - velocity(x, t, True)
                if self.projected:
                    running = difference + self.momentum * running
                    difference = self._project(running, v)
                v = v + (self.guidance - 1) * difference
            x = x - v / self.steps
        return x

    def _project(self, difference: Tensor, v: Tensor) -> Tensor:
        axes = tuple(range(1, v.dim()))
        length = torch.linalg.vector_norm(difference.float(), dim=axes, keepdim=True)
        difference = difference * (self.threshold / length.clamp(min=1e-12)).clamp(max=1)
        along = v / torch.linalg.vector_norm(v.float(), dim=axes, keepdim=True).clamp(min=1e-12)
        parallel = (difference * along).sum(axes, keepdim=True) * along
        return difference - parallel + self.eta * parallel
