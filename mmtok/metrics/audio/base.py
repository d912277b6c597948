"""What scores an utterance, and the means over utterances.

Legend: T samples of one utterance, mono, float32 in [-1, 1].

Everything is measured per utterance on its true length and averaged with equal weights. An utterance that a metric
cannot score (silence for PESQ, too short for STOI) counts as a failure with its name and reason; the mean is over
the others, and both counts are reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.metrics.base import Metric


class Unscorable(Exception):
    """This metric has no value for this utterance; the message is the reason, in a few words."""


class Scorer:
    """A metric of one utterance. Scorers hold networks but no results, so all candidates share one.

    name       what a user asks for
    rate       Hz at which signals must be given; None takes the rate of the codec
    keys       of the values, [a-z0-9_]+, with the protocol in them
    reference  whether the original is compared with; otherwise only the reconstruction is heard
    """

    name: str
    rate: int | None = None
    keys: tuple[str, ...]
    reference: bool = True

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        """Values by key of [T] against [T], both float32 on the CPU; NaN where one key alone has no value.

        Unscorable when there is none at all.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Failure:
    """An utterance that has no value: the key of the metric, the name of the utterance, the reason."""

    metric: str
    utterance: str
    reason: str


class UtteranceMeans(Metric):
    """Means over utterances of one scorer's values, and what failed.

    failures  of this process; their number is a state, so it adds up over processes
    """

    def __init__(self, scorer: Scorer) -> None:
        size = len(scorer.keys)
        super().__init__(
            count=torch.zeros(size, dtype=torch.int64), failed=torch.zeros(size, dtype=torch.int64),
            total=torch.zeros(size, dtype=torch.float64),
        )
        self.scorer = scorer
        self.failures: list[Failure] = []

    def update(self, utterance: str, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        """Scores one utterance, [T] against [T] at the scorer's rate; returns the values it has."""
        reason, values = "no value", {}
        try:
            values = self.scorer.score(reference, degraded)
        except Unscorable as error:
            reason = str(error)
        row = torch.tensor([values.get(key, math.nan) for key in self.scorer.keys], dtype=torch.float64)
        valid = torch.isfinite(row)
        self.add("count", valid)
        self.add("failed", ~valid)
        self.add("total", row.nan_to_num(0.0, 0.0, 0.0))
        self.failures += [
            Failure(key, utterance, reason) for key, ok in zip(self.scorer.keys, valid.tolist(), strict=True) if not ok
        ]
        return {key: float(v) for key, v, ok in zip(self.scorer.keys, row, valid.tolist(), strict=True) if ok}

    def compute(self) -> dict[str, float]:
        """Means by key; a key that no utterance has a value for is absent."""
        rows = zip(self.scorer.keys, self.states["count"].tolist(), self.states["total"].tolist(), strict=True)
        return {key: total / count for key, count, total in rows if count}

    def failed(self) -> dict[str, int]:
        """Failures by key, only where there are any."""
        rows = zip(self.scorer.keys, self.states["failed"].tolist(), strict=True)
        return {key: count for key, count in rows if count}
