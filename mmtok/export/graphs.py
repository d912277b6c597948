"""Encoder and decoder of a tokenizer as modules from tensor to tensor.

Legend: B batch, C channels, X axes of the media, K codebooks, S positions.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from mmtok.export.quantizers import grids, latents
from mmtok.keep import Prefix, full_keep
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
class _Sent:
    """Stands for tokens where a model asks what is sent: masks of a batch of one, or None for every code."""

    keep: tuple[Tensor, ...] | None


class EncoderGraph(nn.Module):
    """x float32 [B, C, *X] in [-1, 1], X the size of the export -> codes int64 [B, K, *S], or a tuple of grids.

    length  first so many codes of the only grid, or codebooks where depth varies; None keeps all
    keep    masks over several grids, where a prefix of them is sent: other codes become 0
    """

    def __init__(
        self, tokenizer: Tokenizer, length: int | None = None, keep: tuple[Tensor, ...] | None = None
    ) -> None:
        super().__init__()
        self.tokenizer, self.length, self.keep = tokenizer, length, keep

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = grids(self.tokenizer.quantizer, self.tokenizer.latents(x).float())
        if self.keep is not None:
            return tuple(grid * mask for grid, mask in zip(found, self.keep, strict=True))
        if len(found) > 1:
            return found
        (grid,) = found
        if self.length is None:
            return grid
        return grid[:, : self.length] if self.tokenizer.coding == Prefix(1) else grid[..., : self.length]


class DecoderGraph(nn.Module):
    """codes int64 [B, K, *S], one argument a grid -> x float32 [B, C, *X] in [-1, 1]; padding is not cropped off."""

    def __init__(self, tokenizer: Tokenizer, keep: tuple[Tensor, ...] | None = None) -> None:
        super().__init__()
        self.tokenizer, self.keep = tokenizer, keep

    def forward(self, *codes: Tensor) -> Tensor:
        tokenizer = self.tokenizer
        z = latents(tokenizer.quantizer, codes, self.keep)
        x = tokenizer.reconstruct(z, cast(Tokens, _Sent(self.keep)))
        if tokenizer.unit_range:
            x = x * 2 - 1
        return x.float().clamp(-1, 1)


def graphs(
    tokenizer: Tokenizer, length: int | None = None, size: tuple[int, ...] | None = None
) -> tuple[EncoderGraph, DecoderGraph]:
    """Both graphs over a copy with weight normalization folded.

    length  first so many codes, or codebooks where depth varies; None keeps all. Part of the graph.
    size    media size, which several grids follow from; None is the tokenizer's own
    ValueError says which step of this tokenizer cannot be a graph, and why.
    """
    for kind, reason in REASONS.items():
        if isinstance(tokenizer, kind):
            raise ValueError(f"export: {type(tokenizer).__name__} cannot be a graph: {reason}")
    for step in STEPS:
        owner = next(kind for kind in type(tokenizer).__mro__ if step in vars(kind))
        if owner not in PLAIN:
            raise ValueError(f"export: {type(tokenizer).__name__} cannot be a graph: {step} has a flow of its own")
    if length is not None and tokenizer.tail is None:
        raise ValueError("export: this tokenizer has no tail drop, so its length is fixed; leave --length out")
    plain = copy.deepcopy(tokenizer).to("cpu").eval().requires_grad_(False)
    fold_weight_norm(plain)
    if len(tokenizer.quantizer.codebook_sizes) == 1:
        return EncoderGraph(plain, length).eval(), DecoderGraph(plain).eval()
    shapes = plain.grid_shapes(tuple(size or plain.size))
    keep = full_keep(shapes, 1) if plain.tail is None else plain.tail.keep(shapes, 1, length, "cpu")
    return EncoderGraph(plain, keep=keep if length is not None else None).eval(), DecoderGraph(plain, keep).eval()
