"""Tokenizers that predict the codes of a frozen tokenizer (KARL, ALIT): what they share.

Legend: B batch, E base channels, V base codes, h w grid of base codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.models.image.conv import ConvTokenizer
from mmtok.quantizers.base import Quantizer
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch


class OnBase(Tokenizer):
    """A tokenizer on a frozen base, whose features it reads, whose codes it predicts, whose decoder makes the image.

    base  saved with the model. None works on `batch.features["base"]` [B, E, h, w] and gives no images
    """

    decoder: BaseCodeDecoder

    def __init__(
        self, encoder: nn.Module, quantizer: Quantizer, decoder: BaseCodeDecoder, base: ConvTokenizer | None,
        patch: int, size: tuple[int, int],
    ) -> None:
        if base is not None and (base.quantizer.dim, base.stride[0]) != (decoder.codebook.shape[1], patch):
            raise ValueError(
                f"tokenizer.base has dim {base.quantizer.dim} and stride {base.stride[0]}, encoder and decoder expect"
                f" {decoder.codebook.shape[1]} and {patch}"
            )
        super().__init__(encoder, quantizer, decoder, (patch,) * 2, size, unit_range=True)
        self.base = base

    def read_base(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Base features [B, E, h, w] before its quantizer, and base codes int64 [B, h, w]; without gradient."""
        if self.base is None:
            if "base" not in batch.features:
                raise ValueError("tokenizer.base is missing: set it, or bring batch.features['base']")
            features = batch.features["base"]
        with torch.no_grad():
            if self.base is not None:
                features = self.base.latents(self._to_model(batch.x) * 2 - 1)
            flat = features.movedim(1, -1).flatten(0, -2).float()
            codes = torch.cdist(flat, self.decoder.codebook.float()).argmin(1)
        return features.detach(), codes.view(features.shape[0], *features.shape[2:])

    def image(self, logits: Tensor) -> Tensor:
        """Logits [B, V, h, w] over base codes -> padded image [B, 3, H, W] in [0, 1], not clamped."""
        if self.base is None:
            raise ValueError("decode: tokenizer.base is missing, so only base codes can be predicted, no image")
        y = self.base.decoder(self.base.post_quant_conv(self.decoder.soft_code(logits)))
        return y if self.base.unit_range else (y + 1) / 2

    def error(self, logits: Tensor, x: Tensor, codes: Tensor) -> Tensor:
        """[B]: mean |x - y| of images in [0, 1]; without a base, of the soft codes."""
        if self.base is not None:
            return (self.image(logits).clamp(0, 1) - x).abs().flatten(1).mean(1)
        wanted = F.embedding(codes, self.decoder.codebook).movedim(-1, 1)
        return (self.decoder.soft_code(logits) - wanted).abs().flatten(1).mean(1)

    def code_losses(self, logits: Tensor, codes: Tensor, smoothing: float = 0.0) -> dict[str, Tensor]:
        """`nll` of the base codes and `code`, the squared distance of the soft code from them."""
        wanted = F.embedding(codes, self.decoder.codebook).movedim(-1, 1)
        return {
            "nll": F.cross_entropy(logits.float(), codes, label_smoothing=smoothing),
            "code": F.mse_loss(self.decoder.soft_code(logits).float(), wanted.float()),
        }


class BaseCodeDecoder(nn.Module):
    """Base of decoders that give logits over base codes.

    base_codes, base_dim  V and E of the base's codebook, which is held here too (frozen)
    """

    codebook: Tensor

    def __init__(self, base_codes: int, base_dim: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.randn(base_codes, base_dim) / base_dim**0.5)

    def soft_code(self, logits: Tensor) -> Tensor:
        """[B, V, h, w] -> [B, E, h, w]: base codes averaged by their probability."""
        return (logits.softmax(1).movedim(1, -1) @ self.codebook).movedim(-1, 1)
