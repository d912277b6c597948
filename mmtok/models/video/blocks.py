"""Tokenizers that code a video block of frames after block of frames, whole or as the frames arrive.

Legend: B batch, T frames, t blocks, N codes of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.keep import KeepCoding
from mmtok.nn.stream import Stream
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Quantized, Tokens


@dataclass(frozen=True)
class BlockStream:
    """What a tokenizer of blocks remembers between two chunks.

    held          [B, 3, n, H, W]: frames of a block that is not complete, in [-1, 1]
    coded, shown  blocks that were encoded and decoded
    num_tokens    asked for every block, None: all
    """

    batch: int
    num_tokens: int | None
    encoder: Stream
    decoder: Stream
    held: Tensor | None = None
    coded: int = 0
    shown: int = 0


class BlockVideo(Tokenizer):
    """Base: codes [B, K, t, ..., N] with stride[0] frames a block. Changing a frame never changes earlier blocks.

    A subclass gives `encode_blocks` and `decode_blocks`; both keep what they remember of the past in a stream.
    """

    modality = "video"
    causal = True

    def encode_blocks(
        self, x: Tensor, num_tokens: int | None, stream: Stream, start: int
    ) -> tuple[Quantized, tuple[Tensor, ...], KeepCoding]:
        """x [B, 3, t * stride[0], H, W] in the model's range, after `start` blocks -> codes, masks and their coding."""
        raise NotImplementedError

    def decode_blocks(self, z: Tensor, tokens: Tokens, frames: int, stream: Stream, start: int) -> Tensor:
        """Latents of t blocks, after `start` of them -> x [B, 3, frames, H, W] in the model's range."""
        raise NotImplementedError

    def padded(self, frames: int) -> int:
        """Frames of a whole video after padding."""
        return -(-frames // self.stride[0]) * self.stride[0]

    # ---- streaming --------------------------------------------------------------------------------------------------

    def stream_state(self, batch: int = 1, num_tokens: int | None = None) -> BlockStream:
        """Fresh state for both directions; every block sends `num_tokens` codes (None: all)."""
        return BlockStream(batch, num_tokens, Stream(), Stream())

    @torch.no_grad()
    def encode_chunk(self, x: Tensor, state: BlockStream, last: bool = False) -> tuple[Tokens, BlockStream]:
        """Codes of the blocks that x [B, 3, any number of frames, H, W] completes; `last` fills the final block.

        The tokens of all chunks, laid end to end, are those of `encode` on the whole video.
        """
        x, state = self.gather(x, state, last)
        if not x.shape[2]:
            return self.no_tokens(x), state
        stream = state.encoder.next(last)
        coded = self.encode_blocks(self._to_model(self.whole(x, state)), state.num_tokens, stream, state.coded)
        tokens = self.tokens(*coded, Batch.of(x))
        return tokens, replace(state, encoder=stream, coded=state.coded + tokens.grids[0].shape[2])

    @torch.no_grad()
    def decode_chunk(self, tokens: Tokens, state: BlockStream, last: bool = False) -> tuple[Tensor, BlockStream]:
        """Frames [B, 3, n, H, W] of these tokens: nothing is held back."""
        self._check_id(tokens)
        blocks, (frames, high, wide) = tokens.grids[0].shape[2], tokens.size[0].tolist()
        if not blocks:
            return torch.zeros(len(tokens), 3, 0, high, wide, device=tokens.grids[0].device), state
        stream = state.decoder.next(last)
        alone = blocks == 1 and state.shown == 0
        wanted = self.padded(frames) if alone else blocks * self.stride[0]
        x = self.decode_blocks(self.embed(tokens), tokens, wanted, stream, state.shown)
        x = self._from_model(x, tokens).float().clamp(-1, 1)
        return x, replace(state, decoder=stream, shown=state.shown + blocks)

    def gather(self, x: Tensor, state: BlockStream, last: bool) -> tuple[Tensor, BlockStream]:
        """The frames that can be coded now; the others wait."""
        if x.shape[0] != state.batch:
            raise ValueError(f"stream_state was made for a batch of {state.batch}, the chunk has {x.shape[0]}")
        if state.held is not None and x.shape[3:] != state.held.shape[3:]:
            raise ValueError(f"encode_chunk: frames change size to {list(x.shape[3:])} px in the middle of the stream")
        x = x if state.held is None else torch.cat([state.held, x], 2)
        if x.shape[2]:
            self._check_media(x)
        elif last and not state.coded:
            raise ValueError("encode_chunk: the stream ends without a frame")
        ready = x.shape[2] if last else x.shape[2] // self.stride[0] * self.stride[0]
        return x[:, :, :ready], replace(state, held=x[:, :, ready:].clone())

    def whole(self, x: Tensor, state: BlockStream) -> Tensor:
        """Behind the first block even a short end fills a block."""
        short = -x.shape[2] % self.stride[0] if state.coded else 0
        return F.pad(x, (0, 0, 0, 0, 0, short), mode="replicate") if short else x

    def no_tokens(self, x: Tensor) -> Tokens:
        """Tokens of no block, for frames of the size of x."""
        shapes = self.quantizer.shapes(self.positions((0, *x.shape[3:])))
        grids = tuple(torch.zeros(len(x), *shape, dtype=torch.int64, device=x.device) for shape in shapes)
        keep = tuple(torch.ones_like(grid, dtype=torch.bool) for grid in grids)
        return self.tokens(Quantized(x, grids), keep, self.coding, Batch.of(x))

    def _check_media(self, x: Tensor) -> None:
        super()._check_media(x)
        if x.shape[1] != 3 or not x.numel():
            raise ValueError(f"encode: expected a video [B, 3, T, H, W] with frames and pixels, got {list(x.shape)}")
