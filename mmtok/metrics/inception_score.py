"""Inception Score from additive states: one split over all images (Salimans et al., arXiv 1606.03498).

Legend: B batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmtok.metrics.base import Metric


class InceptionScore(Metric):
    """exp of the mean divergence between p(class | image) and its mean; one split, unbiased logits.

    torch-fidelity's 10 shuffled splits differ below 1 % at 50k images; the key says that this is one split.
    """

    def __init__(self, classes: int = 1008) -> None:
        super().__init__(
            count=torch.zeros(1, dtype=torch.int64), entropy=torch.zeros(1, dtype=torch.float64),
            total=torch.zeros(classes, dtype=torch.float64),
        )

    def update(self, logits: Tensor) -> None:
        """Counts float logits [B, classes]."""
        logs = logits.detach().to("cpu", torch.float64).log_softmax(1)
        self.add("count", torch.tensor([logs.shape[0]]))
        self.add("entropy", (logs.exp() * logs).sum().view(1))
        self.add("total", logs.exp().sum(0))

    def compute(self) -> dict[str, float]:
        count = int(self.states["count"])
        if not count:
            raise ValueError("inception_score: no images were evaluated")
        mean = self.states["total"] / count
        divergence = self.states["entropy"] / count - torch.xlogy(mean, mean).sum()
        return {"inception_score_1split": math.exp(float(divergence))}
