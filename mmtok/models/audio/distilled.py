"""A residual codec whose first codebook is taught what is said (SpeechTokenizer, arXiv 2308.16692; DM-Codec).

Legend: B batch, D latent channels, F frames, E channels of the teacher.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from mmtok.models.audio.codec import WaveCodec
from mmtok.quantizers.residual import Residual
from mmtok.taildrop import TailDrop
from mmtok.types import Batch, Quantized, Reconstruction


class DistilledCodec(WaveCodec):
    """A `WaveCodec` whose training forward also gives `heads["semantic"]` float [B, F, E].

    That head is a linear layer on the first codebook's straight-through vectors: the prediction of teacher features,
    to be compared with them by a distillation loss. Encoding and decoding do not use it.

    semantic_dim  E; None: the vectors themselves, without a linear layer (published where E equals D)
    """

    quantizer: Residual

    def __init__(
        self, encoder: nn.Module, quantizer: Residual, decoder: nn.Module, sample_rate: int,
        semantic_dim: int | None = None, tail: TailDrop | None = None, end: Literal["zeros", "layers"] = "layers",
    ) -> None:
        super().__init__(encoder, quantizer, decoder, sample_rate, tail, end)
        self.transform = nn.Identity() if semantic_dim is None else nn.Linear(quantizer.dim, semantic_dim)

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """See `Tokenizer.forward`."""
        found: list[tuple[Tensor, Quantized]] = []
        # the latents of this very pass, so that the encoder runs once
        hook = self.quantizer.register_forward_hook(lambda module, args, out: found.append((args[0], out)))
        try:
            out = super().forward(batch, progress)
        finally:
            hook.remove()
        ((z, quantized),) = found
        return replace(out, heads={"semantic": self.semantic(z, quantized.grids)})

    def semantic(self, z: Tensor, grids: tuple[Tensor, ...]) -> Tensor:
        """float [B, F, E] for latents z [B, D, F] and their codes; the gradient goes straight through to z."""
        first = self.quantizer.embeddings(grids)[0]
        return self.transform((z + (first - z).detach()).transpose(1, 2))
