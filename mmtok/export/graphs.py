"""Encoder and decoder of a tokenizer as modules from tensor to tensor.

Legend: B batch, C channels, X axes of the media, K codebooks, S positions.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from mmtok.export.quantizers import codes, values
from mmtok.keep import Prefix
from mmtok.models.audio.codec import WaveCodec
from mmtok.models.audio.segmented import SegmentedCodec
from mmtok.models.audio.snac import SNAC
from mmtok.models.image.conv import ConvTokenizer
from mmtok.models.image.flextok import FlexTok
from mmtok.models.image.karl import KARL
from mmtok.models.image.tatitok import TextTiTok
from mmtok.models.image.titok import TiTok
from mmtok.models.image.titok_proxy import ProxyTiTok
from mmtok.nn.weight_norm import fold_weight_norm
from mmtok.tokenizer import Tokenizer
from mmtok.types import Tokens

PLAIN = (Tokenizer, ConvTokenizer, TiTok, ProxyTiTok, WaveCodec)  # whose steps are functions of tensors alone
STEPS = ("latents", "quantize", "reconstruct", "tokens", "encode", "decode", "_to_model")
REASONS: dict[type[Tokenizer], str] = {
    KARL: "the image decides how many codes it gets, so the graph depends on the data",
    FlexTok: "its decoder is a sampler: a loop over a network, with noise and guidance",
    TextTiTok: "its decoder reads a caption through a text encoder",
    SNAC: "its decoder draws noise",
    SegmentedCodec: "every segment travels with its level, which is not a code",
}


@dataclass(frozen=True)
class _Whole:
    """Stands for tokens whose every code is sent, where a model asks which are."""

    keep: None = None


class EncoderGraph(nn.Module):
    """x float32 [B, C, *X] in [-1, 1], X the size of the export -> codes int64 [B, K, *S]."""

    def __init__(self, tokenizer: Tokenizer, length: int | None = None) -> None:
        super().__init__()
        self.tokenizer, self.length = tokenizer, length

    def forward(self, x: Tensor) -> Tensor:
        grid = codes(self.tokenizer.quantizer, self.tokenizer.latents(x).float())
        if self.length is None:
            return grid
        return grid[:, : self.length] if self.tokenizer.coding == Prefix(1) else grid[..., : self.length]


class DecoderGraph(nn.Module):
    """codes int64 [B, K, *S] -> x float32 [B, C, *X] in [-1, 1]; padding is not cropped off."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Tensor) -> Tensor:
        tokenizer = self.tokenizer
        x = tokenizer.reconstruct(values(tokenizer.quantizer, codes), cast(Tokens, _Whole()))
        if tokenizer.unit_range:
            x = x * 2 - 1
        return x.float().clamp(-1, 1)


def graphs(tokenizer: Tokenizer, length: int | None = None) -> tuple[EncoderGraph, DecoderGraph]:
    """Both graphs over a copy with weight normalization folded.

    length  first so many codes, or codebooks where depth varies; None keeps all. Part of the graph.
    ValueError says which step of this tokenizer cannot be a graph, and why.
    """
    for kind, reason in REASONS.items():
        if isinstance(tokenizer, kind):
            raise ValueError(f"export: {type(tokenizer).__name__} cannot be a graph: {reason}")
    for step in STEPS:
        owner = next(kind for kind in type(tokenizer).__mro__ if step in vars(kind))
        if owner not in PLAIN:
            raise ValueError(f"export: {type(tokenizer).__name__} cannot be a graph: {step} has a flow of its own")
    if len(tokenizer.quantizer.codebook_sizes) != 1:
        count = len(tokenizer.quantizer.codebook_sizes)
        raise ValueError(f"export: one grid of codes is exported, {type(tokenizer.quantizer).__name__} sends {count}")
    if length is not None and tokenizer.tail is None:
        raise ValueError("export: this tokenizer has no tail drop, so its length is fixed; leave --length out")
    plain = copy.deepcopy(tokenizer).to("cpu").eval().requires_grad_(False)
    fold_weight_norm(plain)
    return EncoderGraph(plain, length).eval(), DecoderGraph(plain).eval()
