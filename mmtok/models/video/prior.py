"""Autoregressive prior that is trained together with a tokenizer, so that its codes come easy to predict (LARP).

Legend: R sequences, n codes of a sequence, D code dimension, V codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.block_attention import BlockTransformer


class CodePrior(nn.Module):
    """Causal transformer over code vectors that predicts the next one (LARP, arXiv 2410.21264, section 3.3).

    It reads continuous codes, so its loss reaches the encoder. Scheduled sampling: a second round reads codes of which
    a share was drawn from the predictions of the first.

    dim, length     D and the longest n
    rounds          1: teacher forcing alone; 2: as LARP
    share, ramp     the share of drawn codes grows linearly to `share` over the first `ramp` of the training
    temperature     of the logits, inner products of unit vectors
    """

    def __init__(
        self, dim: int, length: int, width: int = 384, layers: int = 12, heads: int = 6, dropout: float = 0.1,
        rounds: int = 2, share: float = 0.5, ramp: float = 0.3, temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if rounds < 1 or temperature <= 0 or ramp <= 0:
            raise ValueError("prior: rounds, ramp and temperature must be positive")
        self.rounds, self.share, self.ramp, self.temperature = rounds, share, ramp, temperature
        self.embed = nn.Linear(dim, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.dropout = dropout
        self.transformer = BlockTransformer(width, layers, heads, 4 * width, dropout=dropout, bias=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, dim)

    def forward(self, z: Tensor, places: Tensor | None = None) -> Tensor:
        """z [R, n, D], places int64 [R, n] or None for 0..n-1 -> unit vectors [R, n, D]: guesses at the next."""
        positions = self.positions[: z.shape[1]] if places is None else self.positions[places]
        y = F.dropout(self.embed(z) + positions, self.dropout, self.training)
        y = self.transformer(y[:, :, None])[:, :, 0]
        return F.normalize(self.head(self.norm(y)), dim=-1)

    def loss(
        self, z: Tensor, codes: Tensor, table: Tensor, progress: float, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(sum, count) of the cross entropy in nats over predicted codes, averaged over rounds.

        z      [R, n, D] straight-through codes; codes int64 [R, n]; table [V, D]
        keep   bool [R, n]: codes that are sent. They move together to the left and keep their places' positions
        """
        places = None
        wanted = torch.ones_like(codes[:, 1:], dtype=torch.bool)
        if keep is not None:
            places = (~keep).to(torch.int8).argsort(dim=1, stable=True)
            z = z.gather(1, places[..., None].expand_as(z))
            codes, wanted = codes.gather(1, places), keep.gather(1, places)[:, 1:]
            places = places[:, :-1]
        table = table.detach()
        source, total = z, z.new_zeros(())
        for round_ in range(self.rounds):
            logits = self.logits(source, table, places)
            losses = F.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten(), reduction="none")
            total = total + (losses * wanted.flatten()).sum() / self.rounds
            if round_ + 1 < self.rounds:
                source = self.mix(z, logits.detach(), table, progress)
        return total, wanted.sum()

    def logits(self, z: Tensor, table: Tensor, places: Tensor | None = None) -> Tensor:
        """float32 [R, n - 1, V] over codes 1..n-1, given those before."""
        return self(z[:, :-1], places).float() @ table.T / self.temperature

    def mix(self, z: Tensor, logits: Tensor, table: Tensor, progress: float) -> Tensor:
        """z [R, n, D] of which a share, from position 1 on, is replaced by codes drawn from logits [R, n - 1, V]."""
        share = self.share * min(1.0, progress / self.ramp)
        noise = torch.empty_like(logits).exponential_().log_()
        drawn = F.embedding((logits - noise).argmax(-1), table)
        swap = torch.rand(drawn.shape[:2], device=z.device) < share
        return torch.cat([z[:, :1], torch.where(swap[..., None], drawn, z[:, 1:])], 1)
