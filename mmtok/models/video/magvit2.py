"""Open-MAGVIT2 for video (SEED-Voken, after arXiv 2310.05737 and 2409.04410).

Legend: B batch, T H W video.
"""

from __future__ import annotations

from mmtok.models.video.conv import ConvVideoTokenizer, VideoStream
from mmtok.models.video.lengths import Target
from mmtok.nn.magvit3d import MagvitDecoder3d, MagvitEncoder3d
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop


class Magvit2Video(ConvVideoTokenizer):
    """`ConvVideoTokenizer` whose published weights normalise over whole clips (`clip_norm`) and so are not causal."""

    def __init__(
        self, encoder: MagvitEncoder3d, quantizer: Quantizer, decoder: MagvitDecoder3d,
        size: tuple[int, int, int] = (17, 128, 128), rate: float | None = None, piece: int | None = None,
        tail: TailDrop | None = None,
    ) -> None:
        super().__init__(encoder, quantizer, decoder, size, rate, False, piece, tail)
        self.causal = not (encoder.clip_norm or decoder.clip_norm)
        if piece is not None and not self.causal:
            raise ValueError("tokenizer.piece: clip_norm looks at whole clips, so a video goes through at once")

    def stream_state(
        self, batch: int = 1, num_tokens: int | None = None, target: Target | float | str | None = None
    ) -> VideoStream:
        """As `ConvVideoTokenizer.stream_state`; ValueError for weights that normalise over clips."""
        if not self.causal:
            raise ValueError(f"{type(self).__name__} with clip_norm is not causal: it cannot stream")
        return super().stream_state(batch, num_tokens, target)
