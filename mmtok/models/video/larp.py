"""LARP (arXiv 2410.21264): holistic latent queries over video clips, with a prior that shapes the codes.

Legend: B batch, T frames, t blocks, th tw tiles, N latents of a block, D code dimension, S = (t, N) or (t, th, tw, N).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmtok.keep import KeepCoding
from mmtok.models.video.blocks import BlockVideo
from mmtok.models.video.prior import CodePrior
from mmtok.nn.latent_query import LatentQueryDecoder, LatentQueryEncoder
from mmtok.nn.stream import Stream
from mmtok.quantizers.base import Quantizer
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import TailDrop
from mmtok.types import Batch, Quantized, Reconstruction, Tokens


class LARP(BlockVideo):
    """x [B, 3, T, H, W] -> codes [B, 1, t, N], or [B, 1, t, th, tw, N] for pictures of several tiles.

    Any size: pictures are padded to tiles, videos to blocks; a video shorter than one block only to whole patches.
    Blocks come one after another, so a stream of frames can be coded. An image is a video of one frame.

    encoder, decoder  agree in dim, num_latents, frames, blocks, image_size and patch
    prior             predicts codes while training, loss `prior` (nats a code): None leaves it out
    tail              tail drop per block, with `BlockPrefix`
    """

    encoder: LatentQueryEncoder
    decoder: LatentQueryDecoder

    def __init__(
        self, encoder: LatentQueryEncoder, quantizer: Quantizer, decoder: LatentQueryDecoder,
        prior: CodePrior | None = None, tail: TailDrop | None = None, unit_range: bool = True,
    ) -> None:
        for name in ("dim", "num_latents", "frames", "blocks", "image_size", "patch"):
            ours, theirs = getattr(encoder, name), getattr(decoder, name)
            if ours != theirs:
                raise ValueError(f"tokenizer: encoder.{name} is {ours}, decoder.{name} {theirs}: make them equal")
        if encoder.dim != quantizer.dim:
            raise ValueError(f"tokenizer: encoder.dim is {encoder.dim}, quantizer.dim {quantizer.dim}: make them equal")
        if prior is not None and not isinstance(quantizer, VQ):
            raise ValueError("tokenizer.prior: it compares with the codes of a VQ or StochasticVQ quantizer")
        side, frames = encoder.image_size, encoder.frames
        size = (frames * encoder.blocks, side, side)
        super().__init__(encoder, quantizer, decoder, (frames, side, side), size, tail, unit_range)
        self.prior = prior

    # ---- sizes ------------------------------------------------------------------------------------------------------

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(t, N) for pictures of one tile, (t, th, tw, N) for larger ones."""
        blocks, *tiles = super().positions(size)
        return (blocks, self.encoder.num_latents) if max(tiles) == 1 else (blocks, *tiles, self.encoder.num_latents)

    def _to_model(self, x: Tensor) -> Tensor:
        frames = self.padded(x.shape[2])
        x = F.pad(x, (0, 0, 0, 0, 0, frames - x.shape[2]), mode="replicate")
        x = F.pad(x, (0, -x.shape[4] % self.stride[2], 0, -x.shape[3] % self.stride[1], 0, 0), mode="replicate")
        return (x + 1) / 2 if self.unit_range else x

    def padded(self, frames: int) -> int:
        """Frames after padding: whole blocks, or whole patches of a video shorter than a block."""
        unit = self.stride[0] if frames > self.stride[0] else self.encoder.patch[0]
        return -(-frames // unit) * unit

    # ---- flow -------------------------------------------------------------------------------------------------------

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, *S] -> padded video in the model's range."""
        return self.decoder(z, tokens.keep, self.padded(int(tokens.size[:, 0].amax())))

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Reconstruction, with the prior's loss while there is a prior."""
        quantized, tokens = self.code(batch)
        x = self._from_model(self.reconstruct(quantized.z, tokens), tokens)
        losses = dict(quantized.losses)
        if self.prior is not None:
            losses["prior"] = self.prior_loss(quantized, tokens, progress)
        return Reconstruction(x, tokens, losses, stats=quantized.stats)

    def prior_loss(self, quantized: Quantized, tokens: Tokens, progress: float) -> Tensor:
        """Mean cross entropy of the prior over the sent codes of all segments; tiles are sequences of their own."""
        assert self.prior is not None and isinstance(self.quantizer, VQ)
        z, codes, table = quantized.z.float(), tokens.codes, self.quantizer.table()
        keep = tokens.keep[0].expand_as(codes)
        total, count = z.new_zeros(()), z.new_zeros(())
        span = self.encoder.blocks
        for parts in zip(z.split(span, 2), codes.split(span, 2), keep.split(span, 2), strict=True):
            vectors, grid, mask = (_sequences(part) for part in parts)
            kept = None if bool(mask.all()) else mask[..., 0]
            more, n = self.prior.loss(vectors, grid[..., 0], table, progress, kept)
            total, count = total + more, count + n
        return total / count.clamp(min=1)

    # ---- streaming --------------------------------------------------------------------------------------------------

    def encode_blocks(
        self, x: Tensor, num_tokens: int | None, stream: Stream, start: int
    ) -> tuple[Quantized, tuple[Tensor, ...], KeepCoding]:
        z = self.encoder(x, stream, start)
        keep, coding = self.keep_for(z, num_tokens)
        return self.quantize(z, keep), keep, coding

    def decode_blocks(self, z: Tensor, tokens: Tokens, frames: int, stream: Stream, start: int) -> Tensor:
        return self.decoder(z, tokens.keep, frames, stream, start)


def _sequences(x: Tensor) -> Tensor:
    """[B, C, t, N] or [B, C, t, th, tw, N] -> [B th tw, t N, C]."""
    y = x.reshape(*x.shape[:3], -1, x.shape[-1])
    return y.permute(0, 3, 2, 4, 1).flatten(0, 1).flatten(1, 2)
