"""Waveform codecs: encoder, quantizer and decoder over samples.

Legend: B batch, C channels, T samples, D latent channels, F frames, K codebooks.

EnCodec 24 kHz (arXiv 2210.13438), DAC (2306.06546), SpeechTokenizer (2308.16692), WavTokenizer (2408.16532), BigCodec
(2409.05377) and Mimi (2410.00037) are this class with other parts: see docs/audio.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.stream import Stream
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Quantized, Spec, Tokens


@dataclass(frozen=True)
class CodecStream:
    """What a codec remembers between two chunks; `WaveCodec.stream_state` makes one.

    heard, sent   samples that went into the encoder, frames that came out
    told, played  samples the received tokens stand for, samples that came out of the decoder
    """

    batch: int
    num_quantizers: int | None
    encoder: Stream
    decoder: Stream
    heard: int = 0
    sent: int = 0
    told: int = 0
    played: int = 0


class WaveCodec(Tokenizer):
    """x [B, C, T] at `sample_rate` -> codes [B, K, F] -> x [B, C, T].

    encoder         x [B, C, T] -> z [B, D, F]; has `stride`, `channels` and, when it can stream, `causal`
    decoder         z [B, D, F] -> x [B, C, F * stride, or a few samples less]
    sample_rate     Hz
    tail            depth drop, e.g. `UniformTail(Prefix(1))`: `encode(x, num_quantizers=q)`
    end             how a last partial frame is filled: "zeros" behind the samples, or by the "layers" of the encoder
    frame_multiple  with zeros: F is a multiple of this (coarser grids of a hierarchical quantizer, attention windows)
    """

    modality = "audio"

    def __init__(
        self, encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module, sample_rate: int,
        tail: TailDrop | None = None, end: Literal["zeros", "layers"] = "zeros", frame_multiple: int = 1,
    ) -> None:
        stride, channels = int(encoder.stride), int(encoder.channels)  # type: ignore[arg-type]
        if int(decoder.stride) != stride:  # type: ignore[arg-type]
            raise ValueError(f"tokenizer: encoder stride {stride} differs from decoder stride {decoder.stride}")
        super().__init__(encoder, quantizer, decoder, (stride,), (sample_rate,), tail)
        self.sample_rate = sample_rate
        self.channels = channels
        self.hop = stride
        self.end = end
        self.frame_multiple = frame_multiple
        self.causal = bool(getattr(encoder, "causal", False) and getattr(decoder, "causal", False))

    # ---- use ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, x: Tensor | Batch, *, num_tokens: int | None = None, num_quantizers: int | None = None,
        target: float | None = None,
    ) -> Tokens:
        """Codes of x [B, C, T], float in [-1, 1], T >= 1; see `Tokenizer.encode`.

        ValueError when a Batch states another rate than `sample_rate`: resample first.
        """
        batch = x if isinstance(x, Batch) else Batch.of(x)
        return super().encode(
            self._rated(batch), num_tokens=num_tokens, num_quantizers=num_quantizers, target=target
        )

    @property
    def spec(self) -> Spec:
        """Codes and nominal bits per second."""
        frames = 64 * self.frame_multiple
        shapes, sizes = self.quantizer.shapes((frames,)), self.quantizer.codebook_sizes
        per_second = self.sample_rate / (self.hop * frames)
        count = sum(math.prod(shape) for shape in shapes)
        bits = sum(
            math.prod(shape[1:]) * sum(math.log2(v) for v in books) for shape, books in zip(shapes, sizes, strict=True)
        )
        return Spec(
            self.modality, self.stride, sizes, count * per_second, bits * per_second, rate=float(self.sample_rate)
        )

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(F,) for T samples."""
        frames = -(-size[0] // self.hop)
        return (-(-frames // self.frame_multiple) * self.frame_multiple,)

    def media_size(self, size: tuple[int, ...], rate: float | None) -> tuple[int, ...]:
        """Samples at `sample_rate` of a clip of size[0] samples at `rate`, as `mmtok encode` resamples it."""
        if rate is None or rate == self.sample_rate:
            return size
        if not rate > 0:
            raise ValueError(f"damaged: a rate of {rate} Hz")
        return (max(1, round(size[0] * self.sample_rate / rate)),)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, F] -> [B, C, about F * hop]."""
        return self.decoder(z)

    # ---- training -------------------------------------------------------------------------------------------------

    def code(self, batch: Batch) -> tuple[Quantized, Tokens]:
        """See `Tokenizer.code`. Frames behind the end of a clip enter neither losses nor codebook statistics, the
        decoder sees zeros there, and the tokens do not keep them: such tokens are for training, not for a file."""
        if batch.lengths is None or bool((batch.lengths == batch.x.shape[-1]).all()):
            return super().code(batch)
        z = self.latents_of(batch)
        keep, coding = self.drawn_keep(z)
        inside = self._starts(batch.x.shape[-1], z.shape[-1]).to(z.device) < batch.lengths.to(z.device)[:, None]
        # a coarse code of a hierarchical quantizer counts when its first frame does
        strides = [z.shape[-1] // shape[-1] for shape in self.quantizer.shapes(tuple(z.shape[2:]))]
        heard = tuple(mask & inside[:, None, ::stride] for mask, stride in zip(keep, strides, strict=True))
        quantized = self.quantize(z, heard)
        return quantized, self.tokens(quantized, heard, coding, batch)

    # ---- streaming ------------------------------------------------------------------------------------------------

    def stream_state(self, batch: int = 1, num_quantizers: int | None = None) -> CodecStream:
        """Fresh state for both directions; every chunk has `batch` items and sends `num_quantizers` codebooks."""
        if not self.causal:
            super().stream_state(batch)
        return CodecStream(batch, num_quantizers, Stream(), Stream())

    @torch.no_grad()
    def encode_chunk(self, x: Tensor, state: CodecStream, last: bool = False) -> tuple[Tokens, CodecStream]:
        """Codes of the frames that x [B, C, any number of samples] completes; `last` fills the final partial frame.

        The tokens of all chunks, laid end to end, are those of `encode` on the whole signal.
        """
        self._check_media(x, empty=True)
        self._check_batch(x.shape[0], state)
        heard = state.heard + x.shape[-1]
        if last and not heard:
            raise ValueError("encode_chunk: the stream ends without a sample")
        if last and self.end == "zeros":
            x = F.pad(x, (0, self.positions((heard,))[0] * self.hop - heard))
        stream = state.encoder.next(last)
        z = self.encoder(x, stream)
        frames = z.shape[-1]
        count = heard - state.sent * self.hop if last else frames * self.hop
        size = torch.full((state.batch, 1), count, dtype=torch.int64)
        keep, coding = self.keep_for(z, None, state.num_quantizers)
        batch = self._rated(Batch(x, tuple(map(str, range(state.batch))), size))
        quantized = self.quantize(z, keep) if frames else self._nothing(z)
        tokens = self.tokens(quantized, keep, coding, batch)
        return tokens, replace(state, encoder=stream, heard=heard, sent=state.sent + frames)

    @torch.no_grad()
    def decode_chunk(self, tokens: Tokens, state: CodecStream, last: bool = False) -> tuple[Tensor, CodecStream]:
        """Samples [B, C, n] that are final once these tokens are known; `last` gives out what is held back."""
        self._check_batch(len(tokens), state)
        frames = tokens.grids[0].shape[-1]
        device = tokens.grids[0].device
        z = self.embed(tokens) if frames else torch.zeros(state.batch, self.quantizer.dim, 0, device=device)
        stream = state.decoder.next(last)
        told = state.told + int(tokens.size[0, 0])
        x = self.decoder(z, stream)[..., : told - state.played].float().clamp(-1, 1)
        return x, replace(state, decoder=stream, told=told, played=state.played + x.shape[-1])

    # ---- checks and sizes -----------------------------------------------------------------------------------------

    def _starts(self, samples: int, frames: int) -> Tensor:
        """int64 [F]: the sample at which each frame of a clip begins."""
        return torch.arange(frames) * self.hop

    def _to_model(self, x: Tensor) -> Tensor:
        if self.end == "layers":
            return x
        return F.pad(x, (0, self.positions((x.shape[-1],))[0] * self.hop - x.shape[-1]))

    def _from_model(self, x: Tensor, tokens: Tokens) -> Tensor:
        rate = None if tokens.rate is None else float(tokens.rate[0])
        (size,) = self.media_size((int(tokens.size.amax()),), rate)
        # DAC without output padding loses samples at odd strides: silence in their place
        return F.pad(x, (0, max(0, size - x.shape[-1])))[..., :size]

    def _check_media(self, x: Tensor, empty: bool = False) -> None:
        super()._check_media(x)
        if x.shape[1] != self.channels:
            raise ValueError(
                f"encode: this codec takes {self.channels} channels, got {x.shape[1]}: average them, or repeat one"
            )
        if not x.shape[-1] and not empty:
            raise ValueError("encode: the clip holds no samples")

    def _check_batch(self, batch: int, state: CodecStream) -> None:
        if batch != state.batch:
            raise ValueError(f"stream_state was made for a batch of {state.batch}, the chunk has {batch}")

    def _rated(self, batch: Batch) -> Batch:
        if batch.rate is None:
            return replace(batch, rate=torch.full((len(batch.keys),), float(self.sample_rate), dtype=torch.float64))
        if bool((batch.rate != self.sample_rate).any()):
            raise ValueError(
                f"encode: this codec works at {self.sample_rate} Hz, the batch is at {batch.rate.unique().tolist()}:"
                " resample first"
            )
        return batch

    def _nothing(self, z: Tensor) -> Quantized:
        grids = tuple(
            torch.zeros(z.shape[0], *shape, dtype=torch.int64, device=z.device) for shape in self.quantizer.shapes((0,))
        )
        return Quantized(z, grids)
