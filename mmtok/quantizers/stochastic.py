"""Vector quantization that samples its codes while training.

Legend: N vectors, D channels, V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.quantizers.vq import VQ

CHUNK_ENTRIES = 1 << 22


class StochasticVQ(VQ):
    """Codes drawn from softmax(cosine / temperature) in training, nearest in eval (LARP, arXiv 2410.21264).

    Unit vectors throughout; losses as `VQ`. The reference also samples in eval unless told not to; here eval is
    deterministic. Rows are drawn in chunks, so memory stays below N x V.

    temperature  of the softmax over cosines (LARP: 0.03)
    """

    def __init__(self, dim: int, codebook_size: int, temperature: float = 0.03, revival: float = 0.0) -> None:
        super().__init__(dim, codebook_size, l2_norm=True, revival=revival)
        if temperature <= 0:
            raise ValueError(f"quantizer.temperature must be positive, got {temperature}")
        self.temperature = temperature

    def assign(self, vectors: Tensor) -> Tensor:
        if not self.training:
            return super().assign(vectors)
        table = self.table().detach()
        rows = max(1, CHUNK_ENTRIES // len(table))
        # the largest of logits plus Gumbel noise is a sample of their softmax
        parts = [
            (chunk @ table.T / self.temperature - torch.empty(len(chunk), len(table), device=chunk.device)
             .exponential_().log_()).argmax(1)
            for chunk in vectors.split(rows)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=vectors.device)
