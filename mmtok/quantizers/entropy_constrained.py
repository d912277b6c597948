"""Vector quantization that weighs what a code costs against what it saves.

Legend: N vectors, D dimensions, V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.kernels import nearest_code
from mmtok.quantizers.vq import VQ

FLOOR = 0.02  # share of a fair share that a code never seen counts as having


class EntropyConstrainedVQ(VQ):
    """The code that minimises |z - c|^2 + rate_weight * bits(c), bits(c) = -log2 of how often c is sent.

    z [B, D, *S] -> one grid int64 [B, 1, *S]. (Entropy-constrained vector quantization: Chou, Lookabaugh & Gray, IEEE
    Trans. ASSP 37(1), 1989.) Under the tables of a `.mmt` file smooth regions then cost few bits and busy ones many,
    without any side information; a plain VQ spends the same on both. The codebook follows its vectors by EMA, the
    shares follow the codes; both are equal on all processes.

    dim            D
    codebook_size  V; large, since seldom codes cost nothing while they are not sent
    rate_weight    squared distance that a bit must save. On a grid s times coarser than the latents (`MultiScale`) a
                   code covers s^2 positions, so the same trade is rate_weight / s^2
    ema_decay, ema_smoothing, kmeans_steps  as in `VQ`
    usage_decay    decay of the running share of every code
    revival        a code whose share falls under revival / V restarts at a vector of the batch with a fair share
    """

    training_state = ("ema_sums", "ema_counts")

    def __init__(
        self, dim: int, codebook_size: int, rate_weight: float, ema_decay: float = 0.97, ema_smoothing: float = 0.0,
        usage_decay: float = 0.998, revival: float = 0.01, kmeans_steps: int = 0,
    ) -> None:
        super().__init__(
            dim, codebook_size, ema_decay=ema_decay, ema_smoothing=ema_smoothing, usage_decay=usage_decay,
            revival=revival, kmeans_steps=kmeans_steps,
        )
        if rate_weight < 0:
            raise ValueError(f"quantizer.rate_weight must not be negative, got {rate_weight}")
        if revival <= 0:
            raise ValueError(f"quantizer.revival must be positive: the shares are counted for it, got {revival}")
        self.rate_weight = rate_weight
        self.usage.fill_(1.0 / codebook_size)

    def bits(self) -> Tensor:
        """float32 [V]: what each code costs by its running share."""
        size = len(self.usage)
        share = self.usage.float() + FLOOR / size
        return -(share / share.sum()).log2()

    def price(self) -> Tensor:
        """float32 [V]: what is added to the squared distance of each code."""
        return self.rate_weight * self.bits()

    def assign(self, vectors: Tensor) -> Tensor:
        """Codes int64 [N] of detached vectors [N, D]."""
        # one more coordinate, zero for every vector, holds the root of the price: a plain nearest-code search
        table = torch.cat([self.table().detach(), self.price().sqrt()[:, None]], 1)
        return nearest_code(torch.cat([vectors, vectors.new_zeros(len(vectors), 1)], 1), table)[0]

    def restart_training_state(self) -> None:
        self.ema_sums.copy_(self.codebook)
        self.ema_counts.fill_(1.0)
