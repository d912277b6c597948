"""Adversarial terms: a discriminator, its loss, and when and how strongly it acts.

Legend: B batch; logits have any shape.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.discriminators import Verdict
from mmtok.losses.base import Term, Terms, reconstruction_of
from mmtok.losses.gan import GANLoss, Hinge
from mmtok.losses.matching import FeatureMatching
from mmtok.types import Batch, Reconstruction


class Adversarial(Term):
    """Generator terms `<name>` and, with `features`, `<name>_features`; discriminator terms `<name>_disc` and, with
    `lecam`, `<name>_lecam`.

    network   the discriminator: float [B, C, *S] in [-1, 1] -> logits, or a Verdict of several sub-discriminators
    loss      Hinge, LeastSquares, Vanilla, NonSaturating or HingeNonSaturating
    features  also match the feature maps of real and decoded media
    across    joins the losses of sub-discriminators: "mean" (EnCodec, Vocos) or "sum" (HiFi-GAN, DAC, BigCodec)
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
        features: FeatureMatching | None = None, across: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        if min(start, lead, ramp) < 0:
            raise ValueError(f"Adversarial: start, lead and ramp must not be negative, got {start}, {lead}, {ramp}")
        if features is not None and adaptive is not None:
            raise ValueError("Adversarial.features cannot be combined with Adversarial.adaptive, which rescales")
        self.network = network
        self.features, self.across = features, across
        self.balanceable = not ramp and adaptive is None
        self.loss = loss or Hinge()
        self.start, self.lead, self.ramp = start, lead, ramp
        self.adaptive = adaptive
        self.lecam, self.lecam_decay = lecam, lecam_decay
        self.parts = ("",) if features is None else ("", "features")
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
        fake = self._judge(reconstruction_of(recon, "Adversarial"), batch)
        terms = {"": self._join([self.loss.generator(logits) for logits in fake.logits])}
        if self.features is not None:
            with torch.no_grad():
                real = self._judge(batch.x, batch)
            terms["features"] = self.features(real.maps, fake.maps)
        return terms

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
        real = self._judge(batch.x, batch).logits
        fake = self._judge(reconstruction_of(recon, "Adversarial").detach(), batch).logits
        means = torch.stack([torch.stack([logits.mean() for logits in side]).mean() for side in (real, fake)])
        self.stats = self.stats | {"real": means[0].detach(), "fake": means[1].detach()}
        terms = {"disc": self._join([self.loss.discriminator(r, f) for r, f in zip(real, fake, strict=True)])}
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

    def _judge(self, x: Tensor, batch: Batch) -> Verdict:
        """Float32 logits a sub-discriminator; what lies behind the end of shorter clips is silence."""
        if batch.lengths is not None:
            inside = torch.arange(x.shape[-1], device=x.device) < batch.lengths[:, None]
            x = x * inside.view(len(x), *[1] * (x.dim() - 2), -1)
        found = self.network(x)
        verdict = found if isinstance(found, Verdict) else Verdict([found], [])
        return Verdict([logits.float() for logits in verdict.logits], verdict.maps)

    def _join(self, losses: list[Tensor]) -> Tensor:
        stacked = torch.stack(losses)
        return stacked.sum() if self.across == "sum" else stacked.mean()
