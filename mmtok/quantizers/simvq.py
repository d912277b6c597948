"""Vector quantization with a frozen codebook under a learned linear map.

Legend: N vectors, D channels, V codes.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmtok.quantizers.vq import VQ


class SimVQ(VQ):
    """Codes are W c_v with c_v frozen at random and W learned (SimVQ, arXiv 2411.02038).

    Every step moves all codes together, so none dies and nothing is re-seeded. Losses `commit` and `codebook` as `VQ`.
    """

    def __init__(self, dim: int, codebook_size: int, entropy_temperature: float | None = None) -> None:
        super().__init__(dim, codebook_size, revival=0.0, entropy_temperature=entropy_temperature)
        self.codebook.requires_grad_(False)
        self.transform = nn.Linear(dim, dim, bias=False)

    def table(self) -> Tensor:
        return self.codebook.float() @ self.transform.weight.float().T
