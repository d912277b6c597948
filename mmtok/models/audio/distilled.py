"""A codec whose first codebook is taught what is said (SpeechTokenizer, arXiv 2308.16692; DM-Codec; Mimi).

Legend: B batch, D latent channels, F frames, E channels of the teacher.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from mmtok.models.audio.codec import WaveCodec
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.split import SplitResidual
from mmtok.taildrop import TailDrop
from mmtok.types import Batch, Quantized, Reconstruction


class DistilledCodec(WaveCodec):
    """A `WaveCodec` whose training forward also gives `heads["semantic"]` float [B, F, E].

    That head is a linear layer on the first codebook's straight-through vectors (of a `SplitResidual`: on what its
    first part adds): the prediction of teacher features, to be compared with them by `mmtok.losses.Semantic`. Encoding
    and decoding do not use it.

    semantic_dim  E; None: the vectors themselves, without a linear layer (published where E equals D)
    """

    quantizer: Residual | SplitResidual

    def __init__(
        self, encoder: nn.Module, quantizer: Residual | SplitResidual, decoder: nn.Module, sample_rate: int,
        semantic_dim: int | None = None, tail: TailDrop | None = None, end: Literal["zeros", "layers"] = "layers",
    ) -> None:
        super().__init__(encoder, quantizer, decoder, sample_rate, tail, end)
        self.transform = nn.Identity() if semantic_dim is None else nn.Linear(quantizer.dim, semantic_dim)

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """See `Tokenizer.forward`."""
        found: list[tuple[Tensor, Quantized]] = []
        quantizer = self.quantizer
        watched = quantizer.first if isinstance(quantizer, SplitResidual) else quantizer
        # the latents of this very pass, so that the encoder runs once
        hook = watched.register_forward_hook(lambda module, args, out: found.append((args[0], out)))
        try:
            out = super().forward(batch, progress)
        finally:
            hook.remove()
        ((z, quantized),) = found
        if watched is not quantizer:
            semantic = self.transform(quantized.z.transpose(1, 2))
        else:
            semantic = self.semantic(z, quantized.grids)
        return replace(out, heads={"semantic": semantic})

    def semantic(self, z: Tensor, grids: tuple[Tensor, ...]) -> Tensor:
        """float [B, F, E] for latents z [B, D, F] and their codes in a residual chain; the gradient goes straight
        through to z."""
        assert isinstance(self.quantizer, Residual)
        first = self.quantizer.embeddings(grids)[0]
        return self.transform((z + (first - z).detach()).transpose(1, 2))
