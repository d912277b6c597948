"""ElasticTok (arXiv 2410.08368): patches of a block of frames are the codes, and any block may send a prefix of them.

Legend: B batch, T H W video, t blocks of F frames, h w patches of a frame, N = F / patch[0] * h * w codes of a block,
W width, D code dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmtok.keep import KeepCoding, full_keep
from mmtok.models.video.blocks import BlockVideo
from mmtok.models.video.lengths import BPP, Target, choices, psnr, read_target, search_psnr, search_rate
from mmtok.nn.block_attention import BlockTransformer
from mmtok.nn.stream import Causal, Stream
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import Length, TailDrop
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Quantized, Tokens


class ElasticTok(BlockVideo):
    """x [B, 3, T, H, W] -> codes [B, 1, t, N]; any size and duration, pictures are repeated to fill a block.

    The encoder is told which patches will be sent, so the length of a block must be known before it is coded: a target
    is met by a search, block after block ("0.02bpp", "30dB", see `mmtok.models.video.lengths`).

    encoder, decoder  agree in dim, frames and patch
    tail              tail drop per block, with `BlockPrefix`
    size              reference (T, H, W) for `spec`
    search_step       a search tries multiples of this length
    """

    encoder: ElasticEncoder
    decoder: ElasticDecoder

    def __init__(
        self, encoder: ElasticEncoder, quantizer: Quantizer, decoder: ElasticDecoder,
        size: tuple[int, int, int] = (4, 256, 256), tail: TailDrop | None = None, search_step: int = 128,
        unit_range: bool = False,
    ) -> None:
        if encoder.frames % encoder.patch[0] or (encoder.frames, encoder.patch) != (decoder.frames, decoder.patch):
            raise ValueError("tokenizer: encoder and decoder need equal frames and patch, patch[0] dividing frames")
        if not encoder.dim == quantizer.dim == decoder.dim:
            raise ValueError(f"tokenizer: encoder.dim and decoder.dim must be the quantizer's {quantizer.dim}")
        stride = (encoder.frames, *encoder.patch[1:])
        super().__init__(encoder, quantizer, decoder, stride, size, tail, unit_range)
        self.search_step = search_step

    # ---- use ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, x: Tensor | Batch, *, num_tokens: Length | None = None, num_quantizers: int | None = None,
        target: Target | float | str | None = None,
    ) -> Tokens:
        """As `Tokenizer.encode`; `num_tokens` an int or one a block, `target` a quality or a rate (searched)."""
        batch = x if isinstance(x, Batch) else Batch.of(x)
        self._check_media(batch.x)
        if target is not None:
            if num_tokens is not None:
                raise ValueError("encode: num_tokens and target both set the length; give one")
            num_tokens = self.search(batch, read_target(target))
        x = self._to_model(batch.x)
        keep, coding = self._masks(x, num_tokens, num_quantizers)
        return self.tokens(self.quantize(self.encoder(x, keep), keep), keep, coding, batch)

    def latents(self, x: Tensor) -> Tensor:
        """z [B, D, t, N] with everything sent."""
        x = self._to_model(x)
        return self.encoder(x, self._masks(x)[0])

    def code(self, batch: Batch) -> tuple[Quantized, Tokens]:
        """The masks come first here: the encoder sees them."""
        x = self._to_model(batch.x)
        keep, coding = self._masks(x)
        if self.training and self.tail is not None:
            shapes = self.quantizer.shapes(self.positions(tuple(x.shape[2:])))
            keep, coding = self.tail.sample(shapes, len(x), x.device), self.tail.coding
        quantized = self.quantize(self.encoder(x, keep), keep)
        return quantized, self.tokens(quantized, keep, coding, batch)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, t, N] -> padded video in the model's range."""
        return self.decoder(z, self._grid(tokens))

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(t, N)."""
        blocks, *grid = Tokenizer.positions(self, size)
        return (blocks, self.encoder.frames // self.encoder.patch[0] * math.prod(grid))

    # ---- blocks ---------------------------------------------------------------------------------------------------

    def encode_blocks(
        self, x: Tensor, num_tokens: Length | None, stream: Stream, start: int
    ) -> tuple[Quantized, tuple[Tensor, ...], KeepCoding]:
        keep, coding = self._masks(x, num_tokens)
        return self.quantize(self.encoder(x, keep, stream), keep), keep, coding

    def decode_blocks(self, z: Tensor, tokens: Tokens, frames: int, stream: Stream, start: int) -> Tensor:
        return self.decoder(z, self._grid(tokens), stream)

    @torch.no_grad()
    def search(self, batch: Batch, target: Target) -> Tensor:
        """int64 [B, t]: block after block the shortest length whose decoding meets the target."""
        if self.tail is None:
            raise ValueError("encode(target=...): this model has no tail drop, so its length is fixed")
        x = self._to_model(batch.x)
        blocks, full = self.positions(tuple(x.shape[2:]))
        lengths = choices(max(self.tail.min_length, min(full, self.search_step)), full, self.search_step)
        probe = Probe(self, x, batch)
        if not isinstance(target, BPP):
            level = torch.full((len(x),), target.db, device=x.device)
            return search_psnr(probe.measure, blocks, lengths, level)
        pixels = batch.size.prod(1).to(x.device, torch.float64)
        (books,) = self.quantizer.codebook_sizes
        most = (target.rate * pixels - blocks * math.log2(full)) / sum(math.log2(v) for v in books)
        if bool((most < blocks * lengths[0]).any()):
            raise ValueError(f"target: {target.rate} bpp is less than {lengths[0]} codes a block cost")
        return search_rate(probe.measure, blocks, lengths, most)

    def _masks(
        self, x: Tensor, num_tokens: Length | None = None, num_quantizers: int | None = None
    ) -> tuple[tuple[Tensor, ...], KeepCoding]:
        if self.tail is None and num_tokens is None and num_quantizers is None:
            return full_keep(self.quantizer.shapes(self.positions(tuple(x.shape[2:]))), len(x), x.device), self.coding
        shape = (len(x), self.quantizer.dim, *self.positions(tuple(x.shape[2:])))
        return self.keep_for(x.new_zeros(1).expand(shape), num_tokens, num_quantizers)

    def _grid(self, tokens: Tokens) -> tuple[int, int]:
        high, wide = (-(-int(n) // s) for n, s in zip(tokens.size.amax(0)[1:], self.stride[1:], strict=True))
        return high, wide


class Probe:
    """Codes a block at candidate lengths behind a past that stays as it was chosen."""

    def __init__(self, model: ElasticTok, x: Tensor, batch: Batch) -> None:
        self.model, self.x, self.batch = model, x, batch
        self.start, self.streams = 0, (Stream(), Stream())

    def measure(self, block: int, length: int, before: Tensor) -> Tensor:
        """dB [B] of `block` at `length`, after blocks of the lengths `before` [B, block]."""
        if block == 0:
            self.start, self.streams = 0, (Stream(), Stream())
        while self.start < block:
            self._run(self.start, before[:, self.start : self.start + 1], self.streams)
            self.start += 1
        copies = (self.streams[0].next(), self.streams[1].next())
        y = self._run(block, before.new_full((len(self.x), 1), length), copies)
        frames = self.model.stride[0]
        x = self.batch.x[:, :, block * frames : (block + 1) * frames]
        y = (y * 2 - 1 if self.model.unit_range else y)[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]
        return psnr(x, y)

    def _run(self, block: int, lengths: Tensor, streams: tuple[Stream, Stream]) -> Tensor:
        frames = self.model.stride[0]
        x = self.x[:, :, block * frames : (block + 1) * frames]
        quantized, keep, _ = self.model.encode_blocks(x, lengths, streams[0], block)
        grid = (x.shape[3] // self.model.stride[1], x.shape[4] // self.model.stride[2])
        return self.model.decoder(quantized.z, grid, streams[1])


class ElasticEncoder(Causal):
    """Patches and whether they are sent, transformer that is causal over blocks, linear to D; no biases.

    dim, frames   D and F
    hidden        width inside the MLP
    window        blocks a block looks back at, itself included; None: all
    rope_base     the longer the videos the larger (the authors go from 5e6 to 5e7)
    """

    def __init__(
        self, dim: int, frames: int = 4, patch: tuple[int, int, int] = (1, 8, 8), width: int = 1024, hidden: int = 2048,
        layers: int = 10, heads: int = 8, rope_base: float = 5e6, window: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.frames = dim, frames
        self.patch = (patch[0], patch[1], patch[2])
        self.patch_embed = nn.Linear(3 * math.prod(patch), width, bias=False)
        self.kept = nn.Parameter(torch.randn(width) * 0.02)
        self.dropped = nn.Parameter(torch.randn(width) * 0.02)
        self.transformer = BlockTransformer(
            width, layers, heads, hidden, window=window, gated=True, rope_base=rope_base,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.project = nn.Linear(width, dim, bias=False)
        self.apply(init_normal)

    def forward(self, x: Tensor, keep: tuple[Tensor, ...], stream: Stream | None = None) -> Tensor:
        """x [B, 3, t F, H, W], one bool mask broadcastable to [B, 1, t, N] -> z [B, D, t, N]."""
        y = self.patch_embed(to_patches(x, self.patch, self.frames))
        mask = keep[0].expand(len(x), 1, *y.shape[1:3])[:, 0, ..., None]
        y = self.transformer(y + torch.where(mask, self.kept, self.dropped), stream=stream)
        return self.project(self.norm(y)).movedim(-1, 1)


class ElasticDecoder(Causal):
    """Linear from D, transformer that is causal over blocks, linear to pixels, tanh. Arguments as above.

    Codes that are not sent are zeros, and are seen as such.
    """

    def __init__(
        self, dim: int, frames: int = 4, patch: tuple[int, int, int] = (1, 8, 8), width: int = 1024, hidden: int = 2048,
        layers: int = 10, heads: int = 8, rope_base: float = 5e6, window: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.frames = dim, frames
        self.patch = (patch[0], patch[1], patch[2])
        self.embed = nn.Linear(dim, width, bias=False)
        self.transformer = BlockTransformer(
            width, layers, heads, hidden, window=window, gated=True, rope_base=rope_base,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.pixels = nn.Linear(width, 3 * math.prod(patch), bias=False)
        self.apply(init_normal)

    def forward(self, z: Tensor, grid: tuple[int, int], stream: Stream | None = None) -> Tensor:
        """z [B, D, t, N], zero where nothing is sent -> x [B, 3, t F, h patch[1], w patch[2]] in (-1, 1)."""
        y = self.transformer(self.embed(z.movedim(1, -1)), stream=stream)
        return from_patches(torch.tanh(self.pixels(self.norm(y))), self.patch, grid)


def to_patches(x: Tensor, patch: tuple[int, int, int], frames: int) -> Tensor:
    """[B, 3, t F, H, W] -> [B, t, N, 3 * prod(patch)]: by time, height, width; values (frame, row, column, RGB)."""
    x = x.unflatten(4, (-1, patch[2])).unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))
    x = x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)
    return x.unflatten(1, (-1, frames // patch[0])).flatten(2, 4)


def from_patches(y: Tensor, patch: tuple[int, int, int], grid: tuple[int, int]) -> Tensor:
    """The inverse: [B, t, N, 3 * prod(patch)] -> [B, 3, T, H, W]."""
    y = y.unflatten(-1, (*patch, 3)).unflatten(2, (-1, *grid)).flatten(1, 2)
    return y.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def init_normal(module: nn.Module) -> None:
    """For `apply`: linear weights from a normal of std 0.02."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
