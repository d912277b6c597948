"""Learning from the codes of a teacher tokenizer.

Legend: B batch, V teacher's codebook size, L teacher codes of one item.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.hub import load
from mmtok.losses.base import Teacher, Term, head_of
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Reconstruction


class ProxyCodes(Term):
    """Cross-entropy between predicted logits and the codes of a frozen teacher for the same image (TiTok stage 1).

    teacher          a saved tokenizer: name, folder or hf:owner/name; or a tokenizer itself
    head             entry of `Reconstruction.heads` with float logits [B, V, *S]
    label_smoothing  share of the target spread over all codes

    Precomputed codes are used instead when the batch brings them: `batch.features["proxy_codes"]`, int64 [B, L].
    """

    def __init__(
        self, teacher: str | Tokenizer | None = None, head: str = "proxy_logits", label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        tokenizer = load(teacher) if isinstance(teacher, str) else teacher
        self.teacher = None if tokenizer is None else Teacher(tokenizer)
        self.head = head
        self.label_smoothing = label_smoothing

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        logits = head_of(recon, self.head, "ProxyCodes").flatten(2).float()
        codes = self._codes(batch)
        if codes.shape[1] != logits.shape[2]:
            raise ValueError(f"ProxyCodes: {codes.shape[1]} teacher codes for {logits.shape[2]} predicted positions")
        loss = F.cross_entropy(logits, codes, label_smoothing=self.label_smoothing)
        self.stats = {"accuracy": (logits.detach().argmax(1) == codes).float().mean()}
        return loss

    @torch.no_grad()
    def _codes(self, batch: Batch) -> Tensor:
        if "proxy_codes" in batch.features:
            return batch.features["proxy_codes"].flatten(1)
        if self.teacher is None:
            raise ValueError("ProxyCodes.teacher: name a tokenizer, or bring features named proxy_codes in the batch")
        tokenizer: Tokenizer = self.teacher.module  # type: ignore[assignment]
        return tokenizer.encode(batch.x).codes.flatten(1)
