"""SNAC (arXiv 2410.14411): codes at several rates, and a decoder that adds noise.

Legend: B batch, T samples, F frames, T_i samples of a decoder stage.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mmtok.models.audio.codec import WaveCodec
from mmtok.nn.dac import DACDecoder, DACEncoder, seeded_noise
from mmtok.quantizers.strided import StridedResidual
from mmtok.taildrop import TailDrop
from mmtok.types import Tokens


class SNAC(WaveCodec):
    """x [B, 1, T] -> one grid [B, 1, F / stride_i] a level, coarse first -> x.

    Clips are padded with zeros to whole codes of the coarsest level and to whole attention windows. The decoder's noise
    is drawn anew at every training step; `decode` draws it from `seed`, so that a file always sounds the same;
    `reconstruct` in eval mode leaves it out.

    window  of the attention of encoder and decoder, in frames; None where they have none
    """

    decoder: DACDecoder

    def __init__(
        self, encoder: DACEncoder, quantizer: StridedResidual, decoder: DACDecoder, sample_rate: int,
        window: int | None = None, tail: TailDrop | None = None, end: Literal["zeros"] = "zeros",
    ) -> None:
        multiple = math.lcm(*quantizer.strides, window or 1)
        super().__init__(encoder, quantizer, decoder, sample_rate, tail, end, multiple)

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, seed: int = 0) -> Tensor:
        """See `Tokenizer.decode`; the noise of an item depends on `seed` and its place in time alone."""
        self._check_id(tokens)
        z = self.embed(tokens)
        noise = seeded_noise(self.decoder.noise_shapes(z.shape[-1]), z.shape[0], seed, z.device)
        return self._from_model(self.decoder(z, noise), tokens).float().clamp(-1, 1)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, F] -> [B, 1, F * hop], with fresh noise while training."""
        if not self.training:
            return self.decoder(z)
        shapes = self.decoder.noise_shapes(z.shape[-1])
        return self.decoder(z, [torch.randn(z.shape[0], *shape, device=z.device) for shape in shapes])
