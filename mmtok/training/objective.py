"""The objective: named loss terms and one mapping of weights. It owns discriminators and frozen teachers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtok.losses.base import Term, Terms, reconstruction_of
from mmtok.training.balancer import Balancer
from mmtok.types import Batch, Reconstruction


class Objective(nn.Module):
    """Weighted sum of loss terms and of the losses that quantizer and model report themselves.

    terms    name -> term
    weights  name -> factor, for every term (and part) and every loss of the model (`commit`, `codebook`, ...). The name
             is also the logged key, `loss/<name>`. A loss without a weight, or a weight without a loss, is a
             ValueError that names it.
    balancer EnCodec's: weights of the losses it names become shares of the gradient at the reconstruction
    """

    def __init__(self, terms: dict[str, Term], weights: dict[str, float], balancer: Balancer | None = None) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)
        self._matched = False
        for name in self._declared():
            if name not in self.weights:
                raise ValueError(f"objective.weights.{name} is missing: give every term a weight (0 only logs it)")
        self.balancer = balancer
        self._check_balancer()

    def generator(self, recon: Reconstruction, batch: Batch, step: int) -> Terms:
        """Weighted float32 scalars by name; their sum is what the tokenizer minimises."""
        self._match(recon)
        losses = {name: value.float() for name, value in recon.losses.items()}
        rescaled: list[tuple[Term, str]] = []
        for name, term in self._named():
            values = term(recon, batch, step)
            for part, value in ({"": values} if isinstance(values, Tensor) else values).items():
                losses[_join(name, part)] = value.float()
                if term.rescaled:
                    rescaled.append((term, _join(name, part)))
        balanced = set() if self.balancer is None else set(self.balancer.losses) & set(losses)
        rescaled = [(term, name) for term, name in rescaled if name not in balanced]
        later = {name for _, name in rescaled} | balanced
        terms = {name: self.weights[name] * value for name, value in losses.items() if name not in later}
        if self.balancer is not None and balanced:
            pulled = {name: value for name, value in losses.items() if name in balanced}
            terms |= self.balancer(reconstruction_of(recon, "balancer"), pulled, self.weights)
        others = torch.stack(list(terms.values())).sum() if terms else torch.zeros((), device=batch.x.device)
        for term, name in rescaled:
            terms[name] = self.weights[name] * term.scale(losses[name], others, step)
        return terms

    def discriminator(self, recon: Reconstruction, batch: Batch, step: int) -> Terms:
        """Weighted float32 scalars by name; their sum is what the discriminators minimise. Empty while they rest."""
        return {
            _join(name, part): self.weights[_join(name, part)] * value.float()
            for name, term in self._named()
            for part, value in term.discriminator(recon, batch, step).items()
        }

    def discriminators(self) -> list[nn.Module]:
        """The modules that `discriminator` trains."""
        return [module for _, term in self._named() for module in term.discriminators()]

    def bind(self, tokenizer: nn.Module) -> None:
        """Shows the tokenizer to the terms, once."""
        for _, term in self._named():
            term.bind(tokenizer)

    def stats(self) -> Terms:
        """Detached scalars that the terms report, `<term>_<stat>`."""
        stats = {f"{name}_{key}": value for name, term in self._named() for key, value in term.stats.items()}
        if self.balancer is not None:
            stats |= {f"balancer_{key}": value for key, value in self.balancer.stats.items()}
        return stats

    def _named(self) -> list[tuple[str, Term]]:
        return list(self.terms.items())  # type: ignore[arg-type]

    def _declared(self) -> list[str]:
        return [_join(name, part) for name, term in self._named() for part in term.parts + term.discriminator_parts]

    def _check_balancer(self) -> None:
        if self.balancer is None:
            return
        known = [_join(name, part) for name, term in self._named() for part in term.parts]
        for wanted in self.balancer.losses:
            if wanted not in known:
                raise ValueError(f"objective.balancer.losses: {wanted} is no term; there are {', '.join(known)}")
        for name, term in self._named():
            if not term.balanceable and any(_join(name, part) in self.balancer.losses for part in term.parts):
                raise ValueError(f"objective.balancer.losses: {name} scales itself (adaptive, ramp): leave that out")

    def _match(self, recon: Reconstruction) -> None:
        """Every loss of the model has a weight; at the first step also every weight has a loss."""
        unweighted = [name for name in recon.losses if name not in self.weights]
        if unweighted:
            raise ValueError(
                f"objective.weights.{unweighted[0]} is missing: the model reports a loss of that name (0 only logs it)"
            )
        if self._matched:
            return
        declared = self._declared()
        twice = [name for name in recon.losses if name in declared]
        if twice:
            raise ValueError(f"objective.terms.{twice[0]}: the model reports a loss of that name; rename the term")
        idle = [name for name in self.weights if name not in declared and name not in recon.losses]
        if idle:
            known = ", ".join([*declared, *recon.losses])
            raise ValueError(f"objective.weights.{idle[0]} matches no loss: this model and objective have {known}")
        self._matched = True


def _join(name: str, part: str) -> str:
    return f"{name}_{part}" if part else name
