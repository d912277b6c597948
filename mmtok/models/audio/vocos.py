"""Vocos on another codec's codes (arXiv 2306.00814): the decoder is told how many codebooks it hears.

Legend: B batch, D latent channels, F frames.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmtok.models.audio.codec import WaveCodec
from mmtok.nn.vocos import VocosDecoder
from mmtok.quantizers.residual import Residual
from mmtok.taildrop import TailDrop
from mmtok.types import Tokens


class VocosCodec(WaveCodec):
    """`WaveCodec` whose decoder has a row of adaptive norms for every residual depth it was trained at.

    depths  number of codebooks of each row, rising ([2, 4, 8, 16]: 1.5, 3, 6 and 12 kbps of EnCodec 24 kHz). A depth in
            between is decoded with the row of the next one
    """

    decoder: VocosDecoder
    quantizer: Residual
    rows: Tensor

    def __init__(
        self, encoder: nn.Module, quantizer: Residual, decoder: VocosDecoder, sample_rate: int, depths: list[int],
        tail: TailDrop | None = None, end: Literal["zeros", "layers"] = "zeros",
    ) -> None:
        super().__init__(encoder, quantizer, decoder, sample_rate, tail, end)
        if depths != sorted(set(depths)) or depths[-1:] != [quantizer.num_quantizers] or depths[0] < 1:
            raise ValueError(f"tokenizer.depths must rise to {quantizer.num_quantizers} codebooks, got {depths}")
        if decoder.norm.scale.shape[:-1] != (len(depths),):
            raise ValueError(f"tokenizer.decoder.conditions must be {len(depths)}, one for each of depths {depths}")
        self.register_buffer("rows", torch.tensor(depths), persistent=False)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, F] -> [B, 1, F * hop], each item with the row of its depth."""
        sent = tokens.keep[0].expand(len(tokens), self.quantizer.num_quantizers, -1).any(-1).sum(1)
        return self.decoder(z, row=torch.searchsorted(self.rows, sent).clamp(max=len(self.rows) - 1))
