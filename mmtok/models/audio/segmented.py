"""A codec of overlapping, level-normalized segments (EnCodec 48 kHz, arXiv 2210.13438, section 3.1).

Legend: B batch, C channels, T samples, D latent channels, F frames of all segments, n segments.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mmtok.keep import KeepCoding
from mmtok.models.audio.codec import WaveCodec
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop
from mmtok.types import Batch, Quantized, Side, Tokens

GROUP = 16  # segments that go through the network together: bounds memory on long files


class SegmentedCodec(WaveCodec):
    """Each segment is divided by its level and coded alone; decoded segments are joined by triangular overlap-add.

    The frames of all segments lie end to end in one grid. `tokens.side["scale"]` int64 [B, n, 4] holds the bytes of a
    segment's level, float32: the root mean square of its channel mean.

    segment     samples of a segment
    overlap     share of a segment that the next one sees again
    skip_short  a rest that lies wholly inside the last overlap opens no segment of its own (transformers), or does
                (the authors' package)
    """

    def __init__(
        self, encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module, sample_rate: int, segment: int,
        overlap: float = 0.01, skip_short: bool = False, tail: TailDrop | None = None,
    ) -> None:
        super().__init__(encoder, quantizer, decoder, sample_rate, tail, end="layers")
        self.segment = segment
        self.step = max(1, int((1 - overlap) * segment))
        self.skip_short = skip_short
        self.causal = False

    def latents(self, x: Tensor) -> Tensor:
        """z [B, D, F] of all segments end to end."""
        cuts = zip(self._segments(x.shape[-1]), self._scales(x), strict=True)
        pieces = [x[..., at : at + n] / scale for (at, n), scale in cuts]
        return torch.cat(self._grouped(self.encoder, pieces), -1)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, F] -> [B, C, T]."""
        segments = self._segments(int(tokens.size.amax()))
        scales = self._read_scales(tokens.side["scale"]).to(z.device)
        frames = [self._frames(n) for _, n in segments]
        pieces = self._grouped(self.decoder, list(z.split(frames, -1)))
        length = max(at + piece.shape[-1] for (at, _), piece in zip(segments, pieces, strict=True))
        out = z.new_zeros(z.shape[0], self.channels, length)
        weights = z.new_zeros(length)
        ramp = torch.linspace(0, 1, pieces[0].shape[-1] + 2, device=z.device)[1:-1]
        ramp = 0.5 - (ramp - 0.5).abs()
        for index, ((at, _), piece) in enumerate(zip(segments, pieces, strict=True)):
            n = piece.shape[-1]
            out[..., at : at + n] += ramp[:n] * piece * scales[:, index, None, None]
            weights[at : at + n] += ramp[:n]
        return out / weights

    def tokens(self, quantized: Quantized, keep: tuple[Tensor, ...], coding: KeepCoding, batch: Batch) -> Tokens:
        """Tokens with the level of every segment."""
        scales = torch.stack(self._scales(batch.x), 1).view(len(batch.keys), -1)
        values = scales.float().cpu().contiguous().view(torch.uint8).view(*scales.shape, 4)
        tokens = super().tokens(quantized, keep, coding, batch)
        return replace(tokens, side={"scale": Side(values.to(torch.int64))})

    def side_shapes(self, size: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...] | None, int]]:
        """The levels' bytes."""
        return {"scale": ((len(self._segments(size[0])), 4), 256)}

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(F,) over all segments."""
        return (sum(self._frames(n) for _, n in self._segments(size[0])),)

    def _segments(self, length: int) -> list[tuple[int, int]]:
        """(start, samples) of every segment."""
        end = max(1, length - (self.segment - self.step)) if self.skip_short else length
        return [(at, min(self.segment, length - at)) for at in range(0, end, self.step)]

    def _starts(self, samples: int, frames: int) -> Tensor:
        return torch.cat([at + torch.arange(self._frames(n)) * self.hop for at, n in self._segments(samples)])

    def _frames(self, samples: int) -> int:
        return -(-samples // self.hop)

    def _scales(self, x: Tensor) -> list[Tensor]:
        """[B, 1, 1] a segment."""
        mono = x.mean(1, keepdim=True)
        return [
            mono[..., at : at + n].square().mean(2, keepdim=True).sqrt() + 1e-8 for at, n in self._segments(x.shape[-1])
        ]

    def _read_scales(self, side: Side) -> Tensor:
        """float32 [B, n]."""
        assert isinstance(side.values, Tensor)
        return side.values.to(torch.uint8).contiguous().view(torch.float32)[..., 0]

    def _grouped(self, network: nn.Module, pieces: list[Tensor]) -> list[Tensor]:
        """The network on every piece; pieces of the same length share a call."""
        out: list[Tensor] = []
        at = 0
        while at < len(pieces):
            count = 1
            while count < GROUP and at + count < len(pieces) and pieces[at + count].shape == pieces[at].shape:
                count += 1
            out += network(torch.cat(pieces[at : at + count])).chunk(count)
            at += count
        return out
