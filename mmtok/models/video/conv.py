"""Convolutional causal video tokenizers: one code per block of pixels and frames, whole or as the frames arrive.

Legend: B batch, T H W video, t h w code grid, st s strides in time and space, Z encoder channels, D code dimension.

VidTok FSQ (arXiv 2412.13061) and Cosmos DV (arXiv 2501.03575) are this class with other parts: see configs/video/.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.keep import BlockDepth, full_keep
from mmtok.models.video.depths import Choice, begin, choose_next
from mmtok.models.video.lengths import Target, read_target
from mmtok.nn.conv3d import PointConv3d
from mmtok.nn.stream import Stream, in_chunks
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import Length, TailDrop
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Quantized, Spec, Tokens


@dataclass(frozen=True)
class VideoStream:
    """What a video tokenizer remembers between two chunks; `stream_state` makes one.

    waiting       frames [B, 3, n, H, W], in the model's range, that do not fill a block yet
    heard, sent   frames that arrived at the encoder, latent frames that left it
    told, played  frames the received tokens stand for, frames that left the decoder
    target        what the depths of blocks are chosen for, and the choice so far
    """

    batch: int
    num_tokens: int | None
    encoder: Stream
    decoder: Stream
    waiting: Tensor | None = None
    heard: int = 0
    sent: int = 0
    told: int = 0
    played: int = 0
    target: Target | None = None
    choice: Choice | None = None


class ConvVideoTokenizer(Tokenizer):
    """x [B, 3, T, H, W] -> codes [B, K, t, h, w] -> x, with t = 1 + (T - 1) / st, h = H / s; any size and duration.

    The first frame has a latent frame of its own, so a lone image (T = 1) is coded as frame 0 of any video is. Frames
    are filled up to 1 + n st and pixels to multiples of s by repeating the last; decoding crops them.

    encoder     x [B, 3, 1 + n st, H, W] -> [B, Z, 1 + n, h, w], such as `ConvEncoder3d`; has `stride` and `z_channels`
    quantizer   works on D channels
    decoder     [B, Z, 1 + n, h, w] -> x [B, 3, 1 + n st, H, W]
    size        reference (T, H, W) for `spec`
    rate        frames per second the model is trained at; for `spec` only
    quant_conv  1x1x1 convolutions Z -> D before and D -> Z after the quantizer; without them Z must equal D
    piece       latent frames that go through the networks at once in `encode` and `decode`, the first piece having one
                more, which bounds their memory; codes and values are those of the whole (but with CogVideoX's norms).
                None: all
    tail        what is dropped while training; in a stream a policy over blocks of frames
    show_depth  the decoder sees, in one more channel, which share of the codebooks each position was sent: what was
                not sent is zero, and must not be taken for content
    """

    modality = "video"
    causal = True

    def __init__(
        self, encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module, size: tuple[int, int, int] = (17, 256, 256),
        rate: float | None = None, quant_conv: bool = False, piece: int | None = None, tail: TailDrop | None = None,
        unit_range: bool = False, show_depth: bool = False,
    ) -> None:
        stride, theirs = tuple(encoder.stride), tuple(decoder.stride)  # type: ignore[arg-type]
        if stride != theirs:
            raise ValueError(f"tokenizer: encoder.strides give {list(stride)}, decoder.strides {list(theirs)}")
        if piece is not None and piece < 1:
            raise ValueError(f"tokenizer.piece must be positive or null, got {piece}")
        super().__init__(encoder, quantizer, decoder, stride, size, tail, unit_range)
        self.rate = rate
        self.piece = piece
        self.show_depth = show_depth
        widths = (int(encoder.z_channels), int(decoder.z_channels) - show_depth)  # type: ignore[arg-type]
        if not quant_conv and widths != (quantizer.dim, quantizer.dim):
            raise ValueError(
                f"tokenizer.quant_conv: z_channels {widths} differ from the quantizer's {quantizer.dim}: make them"
                " equal or set quant_conv: true"
            )
        self.quant_conv: nn.Module = PointConv3d(widths[0], quantizer.dim) if quant_conv else nn.Identity()
        self.post_quant_conv: nn.Module = PointConv3d(quantizer.dim, widths[1]) if quant_conv else nn.Identity()

    # ---- whole videos -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, x: Tensor | Batch, *, num_tokens: Length | None = None, num_quantizers: int | None = None,
        target: Target | float | str | None = None,
    ) -> Tokens:
        """As `Tokenizer.encode`; `num_tokens` an int, one a block, or int64 [B, t]. With residual depth per block
        (`BlockDepth`) also `target`: "32dB", "0.02bpp", `PSNR` or `BPP` of `mmtok.models.video.lengths`. Depths are
        measured: the encoder runs once, the decoder at every depth of every block."""
        if target is None:
            return super().encode(x, num_tokens=num_tokens, num_quantizers=num_quantizers)  # type: ignore[arg-type]
        tail = self._tail_of_depths(num_tokens)
        batch = x if isinstance(x, Batch) else Batch.of(x)
        self._check_media(batch.x)
        z = self.latents(batch.x)
        keep = full_keep(self.quantizer.shapes(tuple(z.shape[2:])), len(z), z.device)
        quantized, (frames, *space) = self.quantize(z, keep), batch.x.shape[2:]
        full = self.tokens(quantized, keep, tail.coding, batch)
        start = begin(self, full, read_target(target), tail.min_length, math.prod(space), frames / z.shape[2])
        depths, _ = choose_next(self, batch.x, full, start, begun=False, last=True)
        return self.tokens(quantized, self.keep_for(z, depths)[0], tail.coding, batch)

    def latents(self, x: Tensor) -> Tensor:
        """z [B, D, t, h, w] before the quantizer, for x [B, 3, T, H, W] in [-1, 1]."""
        return self.quant_conv(in_chunks(self.encoder, self._to_model(x), *self._pieces(self.stride[0])))

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, t, h, w] -> padded video [B, 3, T, H, W] in the model's range."""
        return in_chunks(self.decoder, self._decoder_input(z, tokens), *self._pieces(1))

    def _decoder_input(self, z: Tensor, tokens: Tokens) -> Tensor:
        z = self.post_quant_conv(z)
        if not self.show_depth:
            return z
        share = tokens.keep[0].to(z.dtype).expand(-1, tokens.grids[0].shape[1], *[-1] * 3).mean(1, keepdim=True)
        return torch.cat([z, share.expand(len(z), 1, *z.shape[2:])], 1)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(t, h, w) for a video of T, H, W."""
        frames, *space = size
        grid = (-(-n // s) for n, s in zip(space, self.stride[1:], strict=True))
        return (1 + -(-(frames - 1) // self.stride[0]), *grid)

    @property
    def spec(self) -> Spec:
        """Strides, codebooks, codes and nominal bits of a video of the reference size."""
        return replace(super().spec, rate=self.rate)

    # ---- streaming ------------------------------------------------------------------------------------------------

    def stream_state(
        self, batch: int = 1, num_tokens: int | None = None, target: Target | float | str | None = None
    ) -> VideoStream:
        """Fresh state for both directions; every chunk has `batch` items. num_tokens: as in `encode`, of each chunk.

        target  as in `encode`: the same depths for a quality; a rate is that of the frames so far, but for the first
        """
        if not self.quantizer.codebook_sizes:
            raise ValueError("stream_state: a continuous bottleneck sends no codes, so it cannot stream")
        if target is not None:
            self._tail_of_depths(num_tokens)
            target = read_target(target)
        return VideoStream(batch, num_tokens, Stream(), Stream(), target=target)

    @torch.no_grad()
    def encode_chunk(self, x: Tensor, state: VideoStream, last: bool = False) -> tuple[Tokens, VideoStream]:
        """Codes of the blocks that x [B, 3, any number of frames, H, W] completes; `last` fills the final block.

        The first block is the first frame, every further one st frames. Grids of all chunks, laid end to end along
        time, are those of `encode` on the whole video. ValueError when frames change size or nothing ever came.
        """
        if x.shape[2]:
            self._check_media(x)
        self._check_batch(x.shape[0], state)
        heard = state.heard + x.shape[2]
        if last and not heard:
            raise ValueError("encode_chunk: the stream ends without a frame")
        size = tuple(x.shape[3:])
        x = self._fill_space(x)
        if state.waiting is not None:
            if x.shape[3:] != state.waiting.shape[3:]:
                raise ValueError(f"encode_chunk: frames change size to {list(size)} px in the middle of the stream")
            x = torch.cat([state.waiting, x], 2)
        if last and x.shape[2]:
            missing = -(x.shape[2] - (0 if state.sent else 1)) % self.stride[0]
            x = torch.cat([x] + [x[:, :, -1:]] * missing, 2)
        ready = self._whole_blocks(x.shape[2], state.sent)
        stream = state.encoder.next(last)
        if ready:
            lengths = self._pieces(self.stride[0], state.sent > 0)
            z = self.quant_conv(in_chunks(self.encoder, x[:, :, :ready], *lengths, stream))
        else:
            grid = [-(-n // s) for n, s in zip(size, self.stride[1:], strict=True)]
            z = x.new_zeros(x.shape[0], self.quantizer.dim, 0, *grid)
        frames = z.shape[2]
        # frames the sent latents stand for: all that came, or those of the whole blocks
        sent = state.sent + frames
        stood = min(heard, self._frames(sent)) - self._frames(state.sent)
        keep, coding = self.keep_for(z, state.num_tokens if frames else None)
        quantized = self.quantize(z, keep) if frames else self._nothing(z)
        counts = torch.tensor([[stood, *size]] * state.batch, dtype=torch.int64)
        batch = Batch(x, tuple(map(str, range(state.batch))), counts)
        tokens, choice = self.tokens(quantized, keep, coding, batch), state.choice
        if state.target is not None and frames:
            shown = x[:, :, :stood, : size[0], : size[1]]
            shown = shown * 2 - 1 if self.unit_range else shown
            least = self._tail_of_depths().min_length
            choice = choice or begin(self, tokens, state.target, least, math.prod(size), None)
            depths, choice = choose_next(self, shown, tokens, choice, state.sent > 0, last)
            tokens = self.tokens(quantized, self.keep_for(z, depths)[0], coding, batch)
        waiting = x[:, :, ready:].clone()
        return tokens, replace(state, encoder=stream, waiting=waiting, heard=heard, sent=sent, choice=choice)

    @torch.no_grad()
    def decode_chunk(self, tokens: Tokens, state: VideoStream, last: bool = False) -> tuple[Tensor, VideoStream]:
        """Frames [B, 3, n, H, W] that are final once these tokens are known; `last` gives out what is held back."""
        self._check_batch(len(tokens), state)
        self._check_id(tokens)
        height, width = tokens.size[0, 1:].tolist()
        stream = state.decoder.next(last)
        if tokens.grids[0].shape[2]:
            z = self._decoder_input(self.embed(tokens), tokens)
        else:
            z = torch.zeros(state.batch, int(self.decoder.z_channels), *tokens.grids[0].shape[2:])  # type: ignore[arg-type]
            z = z.to(tokens.grids[0].device)
        told = state.told + int(tokens.size[0, 0])
        if z.shape[2] or last:
            x = in_chunks(self.decoder, z, *self._pieces(1, state.played > 0), stream)[:, :, : told - state.played]
        else:
            x = z.new_zeros(state.batch, 3, 0, height, width)
        x = (x * 2 - 1 if self.unit_range else x)[..., :height, :width].float().clamp(-1, 1)
        return x, replace(state, decoder=stream, told=told, played=state.played + x.shape[2])

    def _tail_of_depths(self, num_tokens: object = None) -> TailDrop:
        if num_tokens is not None:
            raise ValueError("num_tokens and target both set the length; give one")
        if self.tail is None or not isinstance(self.tail.coding, BlockDepth):
            raise ValueError("target: this model has no residual depth per block to choose")
        return self.tail

    # ---- sizes ------------------------------------------------------------------------------------------------------

    def _to_model(self, x: Tensor) -> Tensor:
        x, missing = self._fill_space(x), -(x.shape[2] - 1) % self.stride[0]
        return torch.cat([x] + [x[:, :, -1:]] * missing, 2) if missing else x

    def _fill_space(self, x: Tensor) -> Tensor:
        """x in the model's range and memory layout, its right and bottom edges repeated up to multiples of s."""
        if self.unit_range:
            x = (x + 1) / 2
        down, right = (-n % s for n, s in zip(x.shape[3:], self.stride[1:], strict=True))
        if (down or right) and x.shape[2]:
            x = F.pad(x, (0, right, 0, down, 0, 0), mode="replicate")
        elif down or right:
            x = x.new_zeros(*x.shape[:3], x.shape[3] + down, x.shape[4] + right)
        return x.contiguous(memory_format=torch.channels_last_3d)

    def _whole_blocks(self, frames: int, sent: int) -> int:
        """How many of the waiting frames make whole blocks."""
        step = self.stride[0]
        if sent:
            return frames // step * step
        return 1 + (frames - 1) // step * step if frames else 0

    def _frames(self, latents: int) -> int:
        """Frames that the first `latents` latent frames stand for."""
        return 1 + (latents - 1) * self.stride[0] if latents else 0

    def _pieces(self, step: int, begun: bool = False) -> tuple[int | None, int | None]:
        """Lengths of the first and the other pieces, `step` frames a latent."""
        if self.piece is None:
            return None, None
        return self.piece * step + (not begun), self.piece * step

    def _check_media(self, x: Tensor) -> None:
        super()._check_media(x)
        if x.shape[1] != 3 or not x.numel():
            raise ValueError(f"encode: expected a video [B, 3, T, H, W] with frames and pixels, got {list(x.shape)}")

    def _check_batch(self, batch: int, state: VideoStream) -> None:
        if batch != state.batch:
            raise ValueError(f"stream_state was made for a batch of {state.batch}, the chunk has {batch}")

    def _nothing(self, z: Tensor) -> Quantized:
        shapes = self.quantizer.shapes(tuple(z.shape[2:]))
        return Quantized(z, tuple(torch.zeros(z.shape[0], *s, dtype=torch.int64, device=z.device) for s in shapes))
