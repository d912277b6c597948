"""Two or more codebooks addressed by one index.

Legend: N vectors, D = sum of the parts' channels, V codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.quantizers.vq import VQ


class SharedIndexVQ(VQ):
    """One code per position chosen by the weighted sum of distances in several codebooks (TokenFlow, arXiv 2412.03069).

    z [B, D, *S] holds the parts side by side (semantic first, then pixels) -> one grid int64 [B, 1, *S]. Each part is
    l2-normalised on its own, in z and in the codebook; index = argmin over v of sum_p weights[p] * |z_p - c_pv|^2. The
    codebook [V, D] holds the parts' tables side by side.

    dims     channels of each part
    weights  of the parts' distances; equal when omitted
    """

    factors: Tensor

    def __init__(
        self, dims: list[int], codebook_size: int, weights: list[float] | None = None, revival: float = 0.05,
        usage_decay: float = 0.99,
    ) -> None:
        super().__init__(sum(dims), codebook_size, revival=revival, usage_decay=usage_decay)
        weights = [1.0] * len(dims) if weights is None else weights
        if len(weights) != len(dims) or min(weights, default=1.0) < 0:
            raise ValueError(f"quantizer.weights: one non-negative weight for each of {len(dims)} dims, got {weights}")
        self.dims = list(dims)
        # scaling a part by sqrt(w) scales its squared distance by w
        scale = torch.cat([torch.full((dim,), weight**0.5) for dim, weight in zip(dims, weights, strict=True)])
        self.register_buffer("factors", scale, persistent=False)

    def unit(self, vectors: Tensor) -> Tensor:
        return torch.cat([F.normalize(part, dim=1) for part in vectors.split(self.dims, 1)], 1)

    def lookup(self, vectors: Tensor) -> Tensor:
        return vectors * self.factors
