"""Tokenizer = encoder + tail drop + quantizer + decoder.

Legend: B batch, C channels, D latent channels, K codebooks, S positions of a code grid, X axes of the media
((H, W), (T, H, W) or (T,)).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.code_tables import CodeTables
from mmtok.keep import Full, KeepCoding, Prefix, Shapes, full_keep
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import Length, TailDrop
from mmtok.types import Batch, Quantized, Reconstruction, Spec, Tokens


class Tokenizer(nn.Module):
    """Media in, codes out, and back.

    encoder    x [B, C, *X] -> z [B, D, *S]
    quantizer  z -> codes -> z
    decoder    `decoder(z, keep)` -> x [B, C, *X]; `keep` is the masks of `Tokens.keep`
    stride     media units per position, one per axis of X; inputs are padded to its multiples and cropped back
    tail       policy that draws how much is sent while training; None sends everything
    size       reference media size for `spec`
    unit_range the encoder and decoder work on [0, 1] instead of [-1, 1]

    A subclass overrides `latents`, `quantize`, `reconstruct` or `forward` when data flows another way.
    """

    modality = "image"
    causal = False

    def __init__(
        self, encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module, stride: tuple[int, ...],
        size: tuple[int, ...], tail: TailDrop | None = None, unit_range: bool = False,
    ) -> None:
        super().__init__()
        if len(stride) != len(size):
            raise ValueError(f"tokenizer.stride has {len(stride)} axes, tokenizer.size {len(size)}")
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder
        self.tail = tail
        self.stride = tuple(stride)
        self.size = tuple(size)
        self.unit_range = unit_range
        self.tokenizer_id = ""
        self.tables: CodeTables | None = None  # entropy-coding tables, see mmtok.bitstream
        self.config: dict[str, Any] | None = None  # resolved config it was built from, see mmtok.hub

    # ---- use ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, x: Tensor | Batch, *, num_tokens: int | None = None, num_quantizers: int | None = None,
        target: float | None = None,
    ) -> Tokens:
        """Codes of x [B, C, *X], float in [-1, 1]; any size.

        num_tokens      length of the prefix that is sent (models with tail drop over positions)
        num_quantizers  residual depth that is sent (models with tail drop over depth)
        target          quality or rate to meet, for models that choose their own length
        ValueError for NaN, a wrong shape, or an argument the model has no axis for.
        """
        batch = x if isinstance(x, Batch) else Batch.of(x)
        self._check_media(batch.x)
        if target is not None:
            raise ValueError(f"encode(target=...): {type(self).__name__} does not choose its own length")
        z = self.latents_of(batch)
        keep, coding = self.keep_for(z, num_tokens, num_quantizers)
        quantized = self.quantize(z, keep)
        return self.tokens(quantized, keep, coding, batch)

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, seed: int = 0) -> Tensor:
        """x [B, C, *X], float32 in [-1, 1], cropped to `tokens.size` (all items of a batch share one size).

        `seed` drives stochastic decoders, per sample; deterministic ones ignore it.
        ValueError for codes out of range or tokens of other weights.
        """
        self._check_id(tokens)
        z = self.embed(tokens)
        return self._from_model(self.reconstruct(z, tokens), tokens).float().clamp(-1, 1)

    def latents(self, x: Tensor) -> Tensor:
        """z [B, D, *S] before the quantizer, for x [B, C, *X] in [-1, 1]."""
        return self.encoder(self._to_model(x))

    def latents_of(self, batch: Batch) -> Tensor:
        """`latents`, for models that read more of a batch than x: true lengths, precomputed features."""
        return self.latents(batch.x)

    def embed(self, tokens: Tokens) -> Tensor:
        """z [B, D, *S] of the codes, differentiable with respect to the codebook; zero where nothing was sent."""
        return self.quantizer.decode(tokens.validate().grids, tokens.keep)

    @property
    def spec(self) -> Spec:
        """Modality, strides, codebooks, codes and nominal bits at the reference size."""
        shapes = self.quantizer.shapes(self.positions(self.size))
        count = sum(math.prod(shape) for shape in shapes)
        bits = sum(
            math.prod(shape[1:]) * sum(math.log2(v) for v in sizes)
            for shape, sizes in zip(shapes, self.quantizer.codebook_sizes, strict=True)
        )
        return Spec(self.modality, self.stride, self.quantizer.codebook_sizes, count, bits, self.size)

    # ---- training -----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Reconstruction of a batch with gradients; lengths are drawn by `tail` while training.

        progress: share of training done, 0 to 1, for models whose behaviour is scheduled.
        """
        quantized, tokens = self.code(batch)
        x = self._from_model(self.reconstruct(quantized.z, tokens), tokens)
        return Reconstruction(x, tokens, quantized.losses, stats=quantized.stats)

    def code(self, batch: Batch) -> tuple[Quantized, Tokens]:
        """The first half of `forward`: quantized latents with gradients, and their tokens."""
        z = self.latents_of(batch)
        keep, coding = self.drawn_keep(z)
        quantized = self.quantize(z, keep)
        return quantized, self.tokens(quantized, keep, coding, batch)

    def drawn_keep(self, z: Tensor) -> tuple[tuple[Tensor, ...], KeepCoding]:
        """Masks and their coding: lengths drawn by `tail` while training, else everything."""
        if self.training and self.tail is not None:
            shapes = self.quantizer.shapes(tuple(z.shape[2:]))
            return self.tail.sample(shapes, z.shape[0], z.device), self.tail.coding
        return self.keep_for(z)

    # ---- parts a subclass may replace -----------------------------------------------------------------------------

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """S for media of this size (after padding)."""
        return tuple(-(-n // s) for n, s in zip(size, self.stride, strict=True))

    def quantize(self, z: Tensor, keep: tuple[Tensor, ...]) -> Quantized:
        """Codes of latents [B, D, *S]."""
        return self.quantizer(z, keep)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """Padded media, in the model's range, from quantized latents [B, D, *S]."""
        return self.decoder(z, tokens.keep)

    def keep_for(
        self, z: Tensor, num_tokens: Length | None = None, num_quantizers: int | None = None
    ) -> tuple[tuple[Tensor, ...], KeepCoding]:
        """Masks and their coding for the asked length; everything when nothing is asked."""
        shapes = self.quantizer.shapes(tuple(z.shape[2:]))
        if self.tail is None:
            if num_tokens is not None or num_quantizers is not None:
                raise ValueError(f"encode: {type(self).__name__} has no tail drop, so its length is fixed")
            return full_keep(shapes, z.shape[0], z.device), self.coding
        depth = self.tail.coding == Prefix(1)
        if depth and num_tokens is not None:
            raise ValueError("encode(num_tokens=...): this model varies its residual depth; use num_quantizers")
        if not depth and num_quantizers is not None:
            raise ValueError("encode(num_quantizers=...): this model varies its number of tokens; use num_tokens")
        length = num_quantizers if depth else num_tokens
        return self.tail.keep(shapes, z.shape[0], length, z.device), self.tail.coding

    def tokens(self, quantized: Quantized, keep: tuple[Tensor, ...], coding: KeepCoding, batch: Batch) -> Tokens:
        """Tokens of quantized latents: unsent codes set to 0."""
        grids = tuple(grid.masked_fill(~mask, 0) for grid, mask in zip(quantized.grids, keep, strict=True))
        return Tokens(
            grids, keep, self.quantizer.codebook_sizes, batch.size, batch.rate, {}, coding, self.tokenizer_id,
            self.tables,
        )

    def grid_shapes(self, size: tuple[int, ...]) -> Shapes:
        """(K, *S) per grid for media of this size: what a receiver knows before any code arrives."""
        return self.quantizer.shapes(self.positions(size))

    def media_size(self, size: tuple[int, ...], rate: float | None) -> tuple[int, ...]:
        """Size, in the units this tokenizer works in, of media that a file states as `size` at `rate`."""
        return size

    @property
    def coding(self) -> KeepCoding:
        """How the masks of this tokenizer are written."""
        return Full() if self.tail is None else self.tail.coding

    def side_shapes(self, size: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...] | None, int]]:
        """name -> (shape of one item, levels) of the side information; a shape of None stands for a byte string."""
        return {}

    # ---- streaming (causal models override these three) -------------------------------------------------------------

    def stream_state(self, batch: int = 1) -> Any:
        """Fresh state for `encode_chunk` and `decode_chunk`."""
        raise ValueError(f"{type(self).__name__} is not causal: it cannot stream")

    def encode_chunk(self, x: Tensor, state: Any, last: bool = False) -> tuple[Tokens, Any]:
        """Codes of the next media units, and the new state; `last` ends the stream and fills a partial block."""
        raise ValueError(f"{type(self).__name__} is not causal: it cannot stream")

    def decode_chunk(self, tokens: Tokens, state: Any, last: bool = False) -> tuple[Tensor, Any]:
        """Media of the next codes, and the new state; `last` gives out what was held back."""
        raise ValueError(f"{type(self).__name__} is not causal: it cannot stream")

    # ---- ranges and sizes -----------------------------------------------------------------------------------------

    def _to_model(self, x: Tensor) -> Tensor:
        if self.unit_range:
            x = (x + 1) / 2
        pad = [(-n) % s for n, s in zip(x.shape[2:], self.stride, strict=True)]
        if any(pad):
            x = _replicate_end(x, pad)
        return x

    def _from_model(self, x: Tensor, tokens: Tokens) -> Tensor:
        if self.unit_range:
            x = x * 2 - 1
        for axis, n in enumerate(tokens.size.amax(0).tolist(), 2):
            x = x.narrow(axis, 0, n)
        return x

    def _check_id(self, tokens: Tokens) -> None:
        if tokens.tokenizer_id and self.tokenizer_id and tokens.tokenizer_id != self.tokenizer_id:
            raise ValueError(
                f"decode: tokens made by weights {tokens.tokenizer_id}, this tokenizer is {self.tokenizer_id}"
            )

    def _check_media(self, x: Tensor) -> None:
        axes = len(self.stride) + 2
        if x.dim() != axes or not x.is_floating_point():
            raise ValueError(f"encode: expected float [B, C, ...] with {axes} axes, got {x.dtype} {list(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            raise ValueError("encode: the input holds NaN or infinity")


def _replicate_end(x: Tensor, pad: list[int]) -> Tensor:
    """Repeats the last entry of every media axis `pad` times; works for any size, unlike reflection."""
    sides = [p for n in reversed(pad) for p in (0, n)]
    return F.pad(x, sides, mode="replicate")
