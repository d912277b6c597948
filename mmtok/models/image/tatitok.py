"""TiTok whose decoder also reads a caption: TA-TiTok (arXiv 2501.07730).

Legend: B batch, M text tokens, E their width, W decoder width, D code dimension, S = (N,) or (th, tw, N).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtok.keep import KeepCoding
from mmtok.models.image.captions import TextEncoder
from mmtok.models.image.titok import TiTok, TiTokDecoder, TiTokEncoder, token
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop
from mmtok.types import Batch, Quantized, Reconstruction, Side, Tokens

CAPTION = "caption"


class TextTiTok(TiTok):
    """The codes say what the caption does not; both are sent, and both are counted in `tokens.bits`.

    Captions come from `batch.text` ("" where there is none) and travel as UTF-8 bytes in `tokens.side["caption"]`.
    Their features come from `text`, or ready-made as `batch.features["text"]` [B, M, E] (training) and
    `decode(tokens, text=...)`.

    text  captions -> features; None works on ready-made features only
    """

    decoder: TextTiTokDecoder

    def __init__(
        self, encoder: TiTokEncoder, quantizer: Quantizer, decoder: TextTiTokDecoder, text: TextEncoder | None = None,
        tail: TailDrop | None = None, unit_range: bool = False,
    ) -> None:
        super().__init__(encoder, quantizer, decoder, tail, unit_range)
        wanted = (decoder.text_tokens, decoder.text_dim)
        if text is not None and (text.context, text.dim) != wanted:
            raise ValueError(
                f"tokenizer.text gives {text.context} tokens of {text.dim} values, the decoder's text_tokens and"
                f" text_dim are {wanted[0]} and {wanted[1]}: make them equal"
            )
        self.text = text

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, seed: int = 0, text: Tensor | None = None) -> Tensor:
        """As `Tokenizer.decode`; text [B, M, E] replaces the features of the captions in `tokens`."""
        if text is None:
            return super().decode(tokens, seed=seed)
        x = self.decoder(self.embed(tokens), tokens.keep, self.decoder.read(text))
        return self._from_model(x, tokens).float().clamp(-1, 1)

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Reconstruction of a batch, with its captions or their features."""
        quantized, tokens = self.code(batch)
        text = batch.features["text"] if "text" in batch.features else self._features(tokens)
        x = self._from_model(self.decoder(quantized.z, tokens.keep, self.decoder.read(text)), tokens)
        return Reconstruction(x, tokens, quantized.losses, stats=quantized.stats)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, *S] and the captions of `tokens` -> padded image [B, 3, H, W]."""
        return self.decoder(z, tokens.keep, self.decoder.read(self._features(tokens)))

    def tokens(self, quantized: Quantized, keep: tuple[Tensor, ...], coding: KeepCoding, batch: Batch) -> Tokens:
        """Codes and captions; ValueError for features whose captions nobody could send."""
        if batch.text is None and "text" in batch.features:
            raise ValueError("batch.features['text'] comes without batch.text: give the captions, their bits count")
        tokens = super().tokens(quantized, keep, coding, batch)
        captions = batch.text or ("",) * len(tokens)
        tokens.side[CAPTION] = Side(tuple(caption.encode() for caption in captions))
        return tokens

    def side_shapes(self, size: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...] | None, int]]:
        """The caption is a byte string."""
        return {CAPTION: (None, 256)}

    def _features(self, tokens: Tokens) -> Tensor:
        if self.text is None:
            raise ValueError("decode: this tokenizer has no text encoder: set tokenizer.text or call decode(text=...)")
        captions = tokens.side[CAPTION].values
        return self.text([bytes(caption).decode("utf-8", "replace") for caption in captions])


class TextTiTokDecoder(TiTokDecoder):
    """`TiTokDecoder` with text tokens after the latents.

    text_tokens, text_dim  M and E; the other arguments as in `TiTokDecoder`
    """

    def __init__(
        self, dim: int, num_latents: int, text_tokens: int = 77, text_dim: int = 768, image_size: int = 256,
        patch: int = 16, width: int = 512, layers: int = 8, heads: int = 8, mlp_ratio: float = 4.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            dim, num_latents, image_size, patch, width, layers, heads, mlp_ratio,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.text_tokens, self.text_dim = text_tokens, text_dim
        self.text_embed = nn.Linear(text_dim, width)
        self.text_positions = token(text_tokens, width)
        nn.init.trunc_normal_(self.text_embed.weight, std=0.02)
        nn.init.zeros_(self.text_embed.bias)

    def read(self, text: Tensor) -> Tensor:
        """Features [B, M, E] -> tokens [B, M, W]; ValueError for other sizes."""
        if text.dim() != 3 or text.shape[1:] != (self.text_tokens, self.text_dim):
            raise ValueError(f"text features are {list(text.shape)}, expected [B, {self.text_tokens}, {self.text_dim}]")
        return self.text_embed(text.to(self.text_embed.weight)) + self.text_positions
