"""EnCodec's gradient balancer (arXiv 2210.13438, section 3.4).

Legend: B batch, *S media axes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Balancer(nn.Module):
    """Makes weights mean shares of the gradient that reaches the reconstruction, whatever the scale of the losses.

    With g_i the gradient of loss i with respect to the reconstruction, the decoder receives the sum over i of
    total_norm * w_i / sum(w) * g_i / <|g_i|>, where <> is a moving average over steps and processes.

    losses      names of the losses that are balanced: functions of the reconstruction. The others (`commit`, ...) are
                added as they are
    decay       of the moving average, which is corrected for its start at zero
    total_norm  what all shares together amount to
    per_item    |g| is the mean over items of their norms, not the norm over the whole batch
    """

    sums: Tensor
    counts: Tensor

    def __init__(
        self, losses: list[str], decay: float = 0.999, total_norm: float = 1.0, per_item: bool = True
    ) -> None:
        super().__init__()
        if not losses or len(set(losses)) != len(losses):
            raise ValueError(f"balancer.losses must name losses, each once, got {losses}")
        if not 0 <= decay < 1 or total_norm <= 0:
            raise ValueError(f"balancer: decay must lie in [0, 1), total_norm be positive, got {decay}, {total_norm}")
        self.losses = list(losses)
        self.decay, self.total_norm, self.per_item = decay, total_norm, per_item
        self.register_buffer("sums", torch.zeros(len(losses)))
        self.register_buffer("counts", torch.zeros(len(losses)))
        self.stats: dict[str, Tensor] = {}

    def forward(self, x: Tensor, losses: dict[str, Tensor], weights: dict[str, float]) -> dict[str, Tensor]:
        """Terms by name: the value is weights[name] * losses[name], the gradient the balanced one.

        x       float [B, *S] that the losses were computed from, with gradient
        losses  float32 scalars; those of `self.losses` that are not active in this step are missing
        ValueError when a loss does not depend on x.
        """
        gradients = {name: self._gradient(name, value, x) for name, value in losses.items()}
        norms = self._average({name: self._norm(gradient) for name, gradient in gradients.items()}, len(x))
        total = sum(weights[name] for name in losses)
        terms = {}
        for name, gradient in gradients.items():
            share = weights[name] / total if total else 0.0
            pull = (x.float() * (share * self.total_norm / (norms[name] + 1e-12) * gradient).detach()).sum()
            terms[name] = weights[name] * losses[name].detach() + (pull - pull.detach())
        self.stats = {f"norm_{name}": norm for name, norm in norms.items()}
        return terms

    def _gradient(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        if not value.requires_grad:
            raise ValueError(f"objective.balancer.losses: {name} does not depend on the reconstruction")
        # graphs are shared between the losses of one discriminator, so none is freed here
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise ValueError(f"objective.balancer.losses: {name} does not depend on the reconstruction")
        return gradient.float()

    def _norm(self, gradient: Tensor) -> Tensor:
        return gradient.flatten(1).norm(dim=1).mean() if self.per_item else gradient.norm()

    @torch.no_grad()
    def _average(self, norms: dict[str, Tensor], items: int) -> dict[str, Tensor]:
        """Moving averages over steps of the means over processes, weighted by items."""
        weight = float(items) if self.per_item else 1.0
        found = torch.stack([*norms.values(), self.sums.new_ones(())]) * weight
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(found)
        *values, count = found.unbind()
        averages = {}
        for name, value in zip(norms, values, strict=True):
            at = self.losses.index(name)
            good = value.isfinite()  # the task skips a non-finite step, so it must leave no trace here
            self.sums[at] = torch.where(good, self.sums[at] * self.decay + value, self.sums[at])
            self.counts[at] = torch.where(good, self.counts[at] * self.decay + count, self.counts[at])
            averages[name] = self.sums[at] / self.counts[at].clamp(min=1e-12)
        return averages
