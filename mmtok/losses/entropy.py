"""Entropy of soft code assignments.

Legend: B batch, V codes, *S positions.
"""

from __future__ import annotations

from torch import Tensor

from mmtok.losses.base import Term, head_of
from mmtok.types import Batch, Reconstruction


class CodeEntropy(Term):
    """Mean entropy per position minus `diversity` x entropy of the mean distribution (MaskGIT-VQGAN, LFQ), in nats.

    Low when every position is sure of its code and all codes are used.

    head         entry of `Reconstruction.heads` with float logits [B, V, *S]
    temperature  divides the logits
    """

    def __init__(self, head: str = "code_logits", diversity: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"CodeEntropy.temperature must be positive, got {temperature}")
        self.head, self.diversity, self.temperature = head, diversity, temperature

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        logits = head_of(recon, self.head, "CodeEntropy").float() / self.temperature
        log_p = logits.flatten(2).movedim(1, -1).flatten(0, 1).log_softmax(-1)
        p = log_p.exp()
        mean = p.mean(0)
        each, joint = -(p * log_p).sum(-1).mean(), -(mean * mean.clamp(min=1e-12).log()).sum()
        self.stats = {"position": each.detach(), "mean": joint.detach()}
        return each - self.diversity * joint
