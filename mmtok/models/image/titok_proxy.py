"""TiTok trained in two stages through the codes of another tokenizer (arXiv 2406.07550, section 3.3).

Legend: B batch, S code positions, V proxy codes, Z their dimension, gh gw grid of proxy codes, H W padded image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtok.models.image.titok import TiTok, TiTokDecoder, TiTokEncoder
from mmtok.nn.conv2d import ConvDecoder2d
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop
from mmtok.types import Batch, Reconstruction, Tokens


class ProxyTiTok(TiTok):
    """TiTok whose decoder predicts proxy codes.

    Stage 1 (`pixels` None): `forward` gives `heads["proxy_logits"]` [B, V, gh, gw] and no image; the tokenizer that
    makes the target codes is a teacher of the objective. Stage 2: `pixels` turns the softmax of the logits into an
    image; encoder and quantizer are frozen by the recipe.
    """

    def __init__(
        self, encoder: TiTokEncoder, quantizer: Quantizer, decoder: TiTokDecoder, pixels: SoftPixels | None = None,
        tail: TailDrop | None = None, unit_range: bool = False,
    ) -> None:
        super().__init__(encoder, quantizer, decoder, tail, unit_range)
        if pixels is not None and pixels.codebook.shape[0] != decoder.proxy_codes:
            raise ValueError(
                f"pixels.codebook_size is {pixels.codebook.shape[0]}, decoder.proxy_codes {decoder.proxy_codes}:"
                " make them equal"
            )
        self.pixels = pixels

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Proxy logits of a batch, and the image when there is a pixel decoder."""
        quantized, tokens = self.code(batch)
        logits = self.decoder(quantized.z, tokens.keep)
        x = None if self.pixels is None else self._from_model(self.pixels(logits), tokens)
        return Reconstruction(x, tokens, quantized.losses, {"proxy_logits": logits}, quantized.stats)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, *S] -> padded image [B, 3, H, W]; ValueError in stage 1."""
        if self.pixels is None:
            raise ValueError("decode: a stage 1 TiTok predicts proxy codes: images need stage 2 (tokenizer.pixels)")
        return self.pixels(self.decoder(z, tokens.keep))

    def _check_head(self, decoder: TiTokDecoder) -> None:
        if decoder.proxy_codes is None:
            raise ValueError("decoder.proxy_codes: ProxyTiTok needs the number of proxy codes")


class SoftPixels(nn.Module):
    """Image from logits over proxy codes: softmax, mean code, convolutional decoder.

    codebook_size  V
    decoder        [B, Z, gh, gw] -> [B, 3, H, W]
    """

    def __init__(self, codebook_size: int, decoder: ConvDecoder2d) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(codebook_size, decoder.z_channels) / decoder.z_channels**0.5)
        self.decoder = decoder

    def forward(self, logits: Tensor) -> Tensor:
        """logits [B, V, gh, gw] -> x [B, 3, H, W]."""
        return self.decoder(self.soft_code(logits))

    def soft_code(self, logits: Tensor) -> Tensor:
        """[B, V, gh, gw] -> [B, Z, gh, gw]: codes averaged by their probability."""
        return (logits.softmax(1).movedim(1, -1) @ self.codebook).movedim(-1, 1)
