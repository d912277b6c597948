"""Factorised video transformers: OmniTokenizer (arXiv 2406.09399) and C-ViViT (Phenaki, arXiv 2210.02399).

Legend: B batch, T H W video, st s strides, t h w code grid with t = 1 + (T - 1) / st, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mmtok.models.video.conv import ConvVideoTokenizer, VideoStream
from mmtok.models.video.lengths import Target
from mmtok.nn.stream import Causal, Stream
from mmtok.nn.vivit import SpatialTransformer, TemporalTransformer
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import Length, TailDrop
from mmtok.types import Batch, Reconstruction, Tokens


class ViViTTokenizer(ConvVideoTokenizer):
    """x [B, 3, T, H, W] or images [B, 3, H, W] -> codes [B, K, t, h, w]; images are videos of one frame.

    Images and videos may come in turn, batch by batch (OmniTokenizer's joint training): the first frame has a stem and
    a head of its own, so an image is coded as the first frame of any video is, and decoding it gives it back as image.

    encoder, decoder  agree in patch; arguments as `ConvVideoTokenizer`
    """

    encoder: ViViTEncoder
    decoder: ViViTDecoder

    def __init__(
        self, encoder: ViViTEncoder, quantizer: Quantizer, decoder: ViViTDecoder,
        size: tuple[int, int, int] = (17, 256, 256), rate: float | None = None, quant_conv: bool = False,
        piece: int | None = None, tail: TailDrop | None = None, unit_range: bool = False,
    ) -> None:
        super().__init__(encoder, quantizer, decoder, size, rate, quant_conv, piece, tail, unit_range)
        # weights trained with the mixing reshape see the future: such a tokenizer codes whole videos only
        self.causal = not (encoder.legacy_reshape or decoder.legacy_reshape)
        if piece is not None and not self.causal:
            raise ValueError("tokenizer.piece: legacy_reshape mixes time and space, so a video goes through at once")

    @torch.no_grad()
    def encode(
        self, x: Tensor | Batch, *, num_tokens: Length | None = None, num_quantizers: int | None = None,
        target: Target | float | str | None = None,
    ) -> Tokens:
        """As `ConvVideoTokenizer.encode`; images [B, 3, H, W] become videos of one frame."""
        batch = x if isinstance(x, Batch) else Batch.of(x)
        batch = as_video(batch)
        return super().encode(batch, num_tokens=num_tokens, num_quantizers=num_quantizers, target=target)

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Reconstruction in the shape of `batch.x`: of images for images, of videos for videos."""
        out = super().forward(as_video(batch), progress)
        return out if batch.x.dim() == 5 or out.x is None else replace(out, x=out.x[:, :, 0])

    def stream_state(
        self, batch: int = 1, num_tokens: int | None = None, target: Target | float | str | None = None
    ) -> VideoStream:
        """As `ConvVideoTokenizer.stream_state`; ValueError for weights that mix time and space."""
        if not self.causal:
            raise ValueError(f"{type(self).__name__} with legacy_reshape is not causal: it cannot stream")
        return super().stream_state(batch, num_tokens, target)

    @torch.no_grad()
    def inflate(self) -> None:
        """Gives the stem and head of later frames those of the first, spread evenly over a patch's frames.

        For the step from images to videos (OmniTokenizer's "average").
        """
        self.encoder.inflate()
        self.decoder.inflate()


class ViViTEncoder(Causal):
    """Stems, spatial transformer, temporal transformer: x [B, 3, T, H, W] -> [B, D, t, h, w].

    patch           (st, s, s); the first frame has patches of one frame
    dim             D
    kinds, temporal layers in space, a letter each (see `SpatialTransformer`), and number of them in time
    heads, head     number and width
    conv, rope, bias, alibi, window, frames  see the transformers; `frames` is the window in time
    amplitude       the weights expect pixels in [-amplitude, amplitude]
    """

    def __init__(
        self, dim: int = 512, patch: tuple[int, int, int] = (4, 8, 8), kinds: str = "ttww", temporal: int = 4,
        heads: int = 8, head: int = 64, conv: bool = True, rope: bool = True, bias: bool = False, alibi: bool = False,
        window: int = 8, frames: int | None = None, amplitude: float = 1.0, legacy_reshape: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stride = self.patch = (patch[0], patch[1], patch[2])
        self.z_channels, self.amplitude, self.legacy_reshape = dim, amplitude, legacy_reshape
        area = 3 * patch[1] * patch[2]
        self.first = PatchStem(area, dim)
        self.rest = PatchStem(area * patch[0], dim)
        self.spatial = SpatialTransformer(dim, kinds, heads, head, conv, rope, bias, window, gradient_checkpointing)
        self.temporal = TemporalTransformer(
            dim, temporal, heads, head, alibi, frames, legacy_reshape, gradient_checkpointing
        )

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole video of 1 + n st frames, or the next ones of a stream."""
        begun = stream is not None and self in stream.memory
        if stream is not None:
            stream.memory[self] = True
        x = x * self.amplitude if self.amplitude != 1 else x
        parts = [] if begun else [self.first(cut(x[:, :, :1], (1, *self.patch[1:])))]
        later = x if begun else x[:, :, 1:]
        if later.shape[2]:
            parts.append(self.rest(cut(later, self.patch)))
        y = self.spatial(torch.cat(parts, 1), stream)
        return self.temporal(y, stream).movedim(-1, 1)

    @torch.no_grad()
    def inflate(self) -> None:
        """Later frames' stem from the first frame's."""
        times = self.patch[0]
        for ours, theirs in zip(self.rest.parameters(), self.first.parameters(), strict=True):
            ours.copy_(spread(theirs, times, self.patch, 1) if ours.shape != theirs.shape else theirs)
        self.rest.linear.weight /= times


class ViViTDecoder(Causal):
    """Temporal transformer, spatial transformer, heads: z [B, D, t, h, w] -> x [B, 3, 1 + (t - 1) st, H, W].

    Arguments as in `ViViTEncoder`; OmniTokenizer has kinds "tttt" here.
    """

    def __init__(
        self, dim: int = 512, patch: tuple[int, int, int] = (4, 8, 8), kinds: str = "tttt", temporal: int = 4,
        heads: int = 8, head: int = 64, conv: bool = True, rope: bool = True, bias: bool = False, alibi: bool = False,
        window: int = 8, frames: int | None = None, amplitude: float = 1.0, legacy_reshape: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stride = self.patch = (patch[0], patch[1], patch[2])
        self.z_channels, self.amplitude, self.legacy_reshape = dim, amplitude, legacy_reshape
        self.temporal = TemporalTransformer(
            dim, temporal, heads, head, alibi, frames, legacy_reshape, gradient_checkpointing
        )
        self.spatial = SpatialTransformer(dim, kinds, heads, head, conv, rope, bias, window, gradient_checkpointing)
        area = 3 * patch[1] * patch[2]
        self.first = nn.Linear(dim, area)
        self.rest = nn.Linear(dim, area * patch[0])

    def forward(self, z: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole video, or the next frames of tokens of a stream."""
        begun = stream is not None and self in stream.memory
        if not z.shape[2]:
            return z.new_zeros(z.shape[0], 3, 0, *(n * s for n, s in zip(z.shape[3:], self.patch[1:], strict=True)))
        if stream is not None:
            stream.memory[self] = True
        y = self.spatial(self.temporal(z.movedim(1, -1), stream), stream)
        parts = [] if begun else [join(self.first(y[:, :1]), (1, *self.patch[1:]))]
        later = y if begun else y[:, 1:]
        if later.shape[1]:
            parts.append(join(self.rest(later), self.patch))
        return torch.cat(parts, 2) / self.amplitude

    @torch.no_grad()
    def inflate(self) -> None:
        """Later frames' head from the first frame's: every frame of a patch alike."""
        self.rest.weight.copy_(spread(self.first.weight, self.patch[0], self.patch, 0))
        self.rest.bias.copy_(spread(self.first.bias, self.patch[0], self.patch, 0))


class PatchStem(nn.Module):
    """[..., values of a patch] -> [..., D]: norm, linear, norm."""

    def __init__(self, values: int, dim: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(values)
        self.linear = nn.Linear(values, dim)
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_out(self.linear(self.norm_in(x)))


def cut(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """[B, 3, T, H, W] -> [B, t, h, w, 3 * prod(patch)], values (RGB, frame, row, column)."""
    x = x.unflatten(4, (-1, patch[2])).unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def join(y: Tensor, patch: tuple[int, ...]) -> Tensor:
    """The inverse: [B, t, h, w, 3 * prod(patch)] -> [B, 3, T, H, W]."""
    y = y.unflatten(-1, (3, *patch)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return y.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def spread(value: Tensor, times: int, patch: tuple[int, int, int], axis: int) -> Tensor:
    """Repeats the values (RGB, row, column) of a patch of one frame along `axis` for every frame of a patch."""
    axis = min(axis, value.dim() - 1)
    y = value.unflatten(axis, (3, 1, patch[1], patch[2])).repeat_interleave(times, axis + 1)
    return y.flatten(axis, axis + 3)


def as_video(batch: Batch) -> Batch:
    """Images [B, 3, H, W] as videos of one frame; videos as they are."""
    if batch.x.dim() != 4:
        return batch
    size = torch.cat([torch.ones_like(batch.size[:, :1]), batch.size], 1)
    return replace(batch, x=batch.x[:, :, None], size=size)
