"""Adversarial terms: a discriminator, its loss, and when and how strongly it acts.

Legend: B batch; logits have any shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.losses.base import Term, Terms, reconstruction_of
from mmtok.types import Batch, Reconstruction


class GANLoss:
    """How logits become losses: float32 scalars."""

    def generator(self, fake: Tensor) -> Tensor:
        raise NotImplementedError

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        raise NotImplementedError


class Hinge(GANLoss):
    """Hinge loss (arXiv 1705.02894); the discriminator's two halves are averaged."""

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


class NonSaturating(GANLoss):
    """Binary cross-entropy; the generator maximises log D(fake) (arXiv 1406.2661)."""

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


class Vanilla(NonSaturating):
    """Cross-entropy for the discriminator, -mean logit for the generator: VQGAN's "vanilla"."""

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()


class HingeNonSaturating(Hinge):
    """Hinge loss for the discriminator, cross-entropy for the generator (MAGVIT-v2's trainers: Open-MAGVIT2, IBQ)."""

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()


class Adversarial(Term):
    """Generator term `<name>`, discriminator terms `<name>_disc` and, with `lecam`, `<name>_lecam`.

    network   the discriminator: float [B, C, *S] in [-1, 1] -> logits
    loss      Hinge, Vanilla, NonSaturating or HingeNonSaturating
    start     step at which the discriminator begins to learn
    lead      further steps before the generator feels it, so that it never faces an untrained discriminator
    ramp      steps over which the generator's term then grows linearly to its weight
    adaptive  name of a tokenizer parameter (the decoder's last weight): the term is scaled so that its gradient there
              is as large as that of all other terms together (VQGAN, eq. 7); None uses the plain weight
    lecam     also regularise towards moving averages of the logits (LeCAM, arXiv 2104.03310)
    """

    ema: Tensor
    rescaled = True

    def __init__(
        self, network: nn.Module, loss: GANLoss | None = None, start: int = 0, lead: int = 0,
        ramp: int = 0, adaptive: str | None = None, lecam: bool = False, lecam_decay: float = 0.999,
    ) -> None:
        super().__init__()
        if min(start, lead, ramp) < 0:
            raise ValueError(f"Adversarial: start, lead and ramp must not be negative, got {start}, {lead}, {ramp}")
        self.network = network
        self.loss = loss or Hinge()
        self.start, self.lead, self.ramp = start, lead, ramp
        self.adaptive = adaptive
        self.lecam, self.lecam_decay = lecam, lecam_decay
        self.discriminator_parts = ("disc", "lecam") if lecam else ("disc",)
        self.register_buffer("ema", torch.zeros(2))  # of mean logits: real, fake

    def discriminators(self) -> list[nn.Module]:
        return [self.network]

    def bind(self, tokenizer: nn.Module) -> None:
        if self.adaptive is None:
            return
        parameters = dict(tokenizer.named_parameters())
        if self.adaptive not in parameters:
            raise ValueError(f"Adversarial.adaptive: the tokenizer has no parameter {self.adaptive!r}")
        self._anchor = (parameters[self.adaptive],)  # a tuple, so that it is not registered here

    def strength(self, step: int) -> float:
        """Share of the weight in force at `step`, 0 to 1."""
        since = step - self.start - self.lead
        if since < 0:
            return 0.0
        return min(1.0, (since + 1) / self.ramp) if self.ramp else 1.0

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Terms:
        if not self.strength(step):
            return {}
        return {"": self.loss.generator(self.network(reconstruction_of(recon, "Adversarial")).float())}

    def scale(self, value: Tensor, others: Tensor, step: int) -> Tensor:
        if self.adaptive is not None:
            value = self._balance(value, others) * value
        return self.strength(step) * value

    def _balance(self, value: Tensor, others: Tensor) -> Tensor:
        """|gradient of the others| / |gradient of the term| at the anchor, at most 1e4, detached."""
        (anchor,) = self._anchor
        if not anchor.requires_grad:
            raise ValueError(f"Adversarial.adaptive: {self.adaptive} is frozen; name a parameter that is trained")
        wanted, got = (torch.autograd.grad(t, anchor, retain_graph=True)[0].float().norm() for t in (others, value))
        factor = torch.nan_to_num(wanted / (got + 1e-4), nan=0.0).clamp(0, 1e4).detach()
        self.stats = self.stats | {"adaptive": factor}
        return factor

    def discriminator(self, recon: Reconstruction, batch: Batch, step: int) -> Terms:
        if step < self.start:
            return {}
        real = self.network(batch.x).float()
        fake = self.network(reconstruction_of(recon, "Adversarial").detach()).float()
        means = torch.stack([real.mean(), fake.mean()])
        self.stats = self.stats | {"real": means[0].detach(), "fake": means[1].detach()}
        terms = {"disc": self.loss.discriminator(real, fake)}
        if self.lecam:
            before = self.ema.clone()  # the buffer changes below, before the backward pass
            terms["lecam"] = F.relu(means[0] - before[1]).square() + F.relu(before[0] - means[1]).square()
            update = means.detach()
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                update = update.clone()
                torch.distributed.all_reduce(update)
                update /= torch.distributed.get_world_size()
            if self.training:
                # a non-finite batch is skipped by the task, so it must not stay here either
                self.ema.lerp_(torch.where(update.isfinite().all(), update, self.ema), 1 - self.lecam_decay)
        return terms
