"""Codes that say what is said: spelling the transcript from them.

Legend: B batch, N steps in time, L letters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.losses.base import Term, head_of
from mmtok.types import Batch, Reconstruction


class Transcription(Term):
    """Connectionist temporal classification (Graves et al. 2006) of the UTF-8 bytes of `batch.text`, per byte.

    head  logits [B, N, 257], blank first
    hop   samples a step, so that padding behind a clip spells nothing

    A clip without a text, or whose text does not fit into its steps, counts as 0; `stats["spelled"]` is the share of
    clips that counted. ValueError when the batch brings no texts (`data.text: true`).
    """

    LETTERS = 256

    def __init__(self, head: str = "text", hop: int | None = None) -> None:
        super().__init__()
        self.head, self.hop = head, hop

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        logits = head_of(recon, self.head, "Transcription").float()
        if logits.shape[-1] != self.LETTERS + 1:
            raise ValueError(f"Transcription: a head of bytes has 257 values, not {logits.shape[-1]}: set letters: 256")
        if batch.text is None:
            raise ValueError("Transcription: the batch brings no texts: set data.init_args.text: true")
        steps = torch.full((len(logits),), logits.shape[1])
        if batch.lengths is not None and self.hop is not None:
            steps = (-(-batch.lengths.cpu() // self.hop)).clamp(max=logits.shape[1])
        letters = [torch.tensor(list(text.strip().encode()), dtype=torch.int64) + 1 for text in batch.text]
        # a repeated letter needs a blank between
        needs = [len(word) + int((word[1:] == word[:-1]).sum()) for word in letters]
        fits = [0 < need <= int(n) for need, n in zip(needs, steps, strict=True)]
        self.stats = {"spelled": torch.tensor(sum(fits) / len(fits))}
        if not any(fits):
            return logits.sum() * 0
        rows = [i for i, fit in enumerate(fits) if fit]
        chosen = [letters[i] for i in rows]
        sizes = torch.tensor([len(word) for word in chosen])
        log_probs = logits[rows].log_softmax(-1).transpose(0, 1)
        each = F.ctc_loss(log_probs, torch.cat(chosen).to(logits.device), steps[rows], sizes, reduction="none")
        return each.sum() / sizes.sum()
