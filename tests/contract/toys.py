"""Ten toy tokenizers, one per way data can flow; each must stay plain under the contracts of `mmtok`.

Legend: B batch, D channels, N tokens, T frames or samples, t blocks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.keep import Bitmap, BlockPrefix, GridPrefix, Prefix
from mmtok.quantizers.base import Quantizer
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import PowerOfTwoTail, UniformTail
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Quantized, Reconstruction, Side, Tokens


class Decoder(nn.Module):
    """Any module as a decoder that does not look at `keep`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, keep: tuple[Tensor, ...]) -> Tensor:
        return self.net(z)


class ResidualFSQ(Quantizer):
    """Sums of ever finer FSQ steps, one per depth, on grids of the given strides over the last axis."""

    def __init__(self, dim: int = 3, strides: list[int] | None = None, depth: int = 1) -> None:
        super().__init__()
        self.dim, self.strides, self.depth = dim, strides or [1], depth
        self.step = FSQ([5] * dim)
        self.codebook_sizes = tuple((5**dim,) * depth for _ in self.strides)

    def shapes(self, positions):
        return tuple((self.depth, *positions[:-1], positions[-1] // s) for s in self.strides)

    def forward(self, z, keep=None):
        residual, total, grids, scale = z, 0, [], 1.0
        for index, stride in enumerate(self.strides):
            codes = []
            for k in range(self.depth):
                coarse = residual.unflatten(-1, (-1, stride)).mean(-1) / scale
                out = self.step(coarse)
                mask = 1 if keep is None else keep[index][:, min(k, keep[index].shape[1] - 1)][:, None]
                part = (out.z * scale * mask).repeat_interleave(stride, -1)
                residual, total = residual - part, total + part
                codes.append(out.grids[0] * mask)
                scale /= 2
            grids.append(torch.cat(codes, 1))
        return Quantized(total, tuple(grids), {}, {})

    def decode(self, grids, keep=None):
        total, scale = 0, 1.0
        for index, (grid, stride) in enumerate(zip(grids, self.strides, strict=True)):
            for k in range(self.depth):
                mask = 1 if keep is None else keep[index][:, min(k, keep[index].shape[1] - 1)][:, None]
                part = self.step.decode((grid[:, k : k + 1],)) * scale * mask
                total, scale = total + part.repeat_interleave(stride, -1), scale / 2
        return total


class PrefixOneD(Tokenizer):
    """1: latent tokens of a whole image, any prefix decodes."""

    def __init__(self, num_tokens: int = 8, dim: int = 4) -> None:
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, num_tokens * dim), nn.Unflatten(1, (dim, num_tokens)))
        decoder = nn.Sequential(nn.Flatten(), nn.Linear(num_tokens * dim, 192), nn.Unflatten(1, (3, 8, 8)))
        quantizer = VQ(dim, 16, ema_decay=0.9)
        super().__init__(encoder, quantizer, Decoder(decoder), (8, 8), (8, 8), UniformTail())
        self.num_tokens = num_tokens

    def positions(self, size):
        return (self.num_tokens,)


class BitmapHalting(Tokenizer):
    """2: the model itself decides which positions are worth sending (KARL, LaVIT)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 4, 4), VQ(4, 32), Decoder(nn.ConvTranspose2d(4, 3, 4, 4)), (4, 4), (16, 16)
        )

    coding = Bitmap()

    def keep_for(self, z, num_tokens=None, num_quantizers=None):
        energy = z.square().sum(1, keepdim=True)
        return (energy >= energy.flatten(1).median(1).values.view(-1, 1, 1, 1),), self.coding


class ThreeScales(Tokenizer):
    """3: one grid a scale, coarse first, the tail of scales is dropped (VAR)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 3, 4, 4), ResidualFSQ(3, [4, 2, 1]), Decoder(nn.ConvTranspose2d(3, 3, 4, 4)), (4, 16),
            (16, 16), PowerOfTwoTail(GridPrefix()),
        )

    def positions(self, size):
        return -(-size[0] // 4), -(-size[1] // 16) * 4


class CausalAudio(Tokenizer):
    """4: three rates (SNAC); strided blocks see no future, so chunks of whole blocks can stream."""

    modality, causal = "audio", True

    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(1, 3, 4, 4), ResidualFSQ(3, [4, 2, 1]), Decoder(nn.ConvTranspose1d(3, 1, 4, 4)), (16,), (64,)
        )

    def positions(self, size):
        return (-(-size[0] // 16) * 4,)

    def stream_state(self, batch=1):
        return 0

    def encode_chunk(self, x, state):
        return self.encode(x), state + x.shape[-1]

    def decode_chunk(self, tokens, state):
        return self.decode(tokens), state + int(tokens.size[0, 0])


class ResidualDepth(Tokenizer):
    """5: residual quantizer whose depth is drawn per item (SoundStream)."""

    modality = "audio"

    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(1, 3, 4, 4), ResidualFSQ(3, depth=4), Decoder(nn.ConvTranspose1d(3, 1, 4, 4)), (4,), (64,),
            UniformTail(Prefix(1)),
        )


class BlockVideo(Tokenizer):
    """6: a prefix per block of frames, blocks are causal."""

    modality, causal = "video", True

    def __init__(self, num_tokens: int = 6) -> None:
        block = nn.Conv3d(3, num_tokens * 3, (2, 8, 8), (2, 8, 8))
        unblock = nn.ConvTranspose3d(num_tokens * 3, 3, (2, 8, 8), (2, 8, 8))
        super().__init__(block, FSQ([5, 5, 5]), unblock, (2, 8, 8), (8, 8, 8), UniformTail(BlockPrefix()))
        self.num_tokens = num_tokens

    def positions(self, size):
        return -(-size[0] // 2), self.num_tokens

    def latents(self, x):
        z = super().latents(x)
        return z.view(z.shape[0], 3, self.num_tokens, z.shape[2]).transpose(2, 3)

    def reconstruct(self, z, tokens):
        return self.decoder(z.transpose(2, 3).reshape(z.shape[0], -1, z.shape[2], 1, 1))

    def stream_state(self, batch=1):
        return 0

    def encode_chunk(self, x, state):
        return self.encode(x, num_tokens=4), state

    def decode_chunk(self, tokens, state):
        return self.decode(tokens), state


class SideScalar(Tokenizer):
    """7: each segment is normalised, and its loudness travels beside the codes (EnCodec 48 kHz)."""

    modality = "audio"

    def __init__(self, segment: int = 16) -> None:
        super().__init__(
            nn.Conv1d(1, 3, 4, 4), FSQ([5, 5, 5]), Decoder(nn.ConvTranspose1d(3, 1, 4, 4)), (segment,), (64,)
        )
        self.segment = segment

    def positions(self, size):
        return (-(-size[0] // self.segment) * self.segment // 4,)

    def side_shapes(self, size):
        return {"loudness": ((-(-size[0] // self.segment),), 256)}

    def loudness(self, x: Tensor) -> Tensor:
        peaks = self._to_model(x).unflatten(-1, (-1, self.segment)).abs().amax((1, -1))
        return peaks.mul(255).round().clamp(1, 255).long()

    def latents(self, x):
        gain = self.loudness(x).repeat_interleave(self.segment, 1)[:, None] / 255
        return self.encoder(self._to_model(x) / gain)

    def tokens(self, quantized, keep, coding, batch):
        side = {"loudness": Side(self.loudness(batch.x), 256)}
        return replace(super().tokens(quantized, keep, coding, batch), side=side)

    def reconstruct(self, z, tokens):
        gain = tokens.side["loudness"].values.repeat_interleave(self.segment, 1)[:, None] / 255
        return super().reconstruct(z, tokens) * gain


class TextCondition(Tokenizer):
    """8: the decoder reads a caption, whose bytes are paid for (TA-TiTok)."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 3, 4, 4), FSQ([5, 5, 5]), nn.ConvTranspose2d(3, 3, 4, 4), (4, 4), (16, 16))
        self.letters = nn.Embedding(256, 3)

    def side_shapes(self, size):
        return {"text": (None, 256)}

    def tokens(self, quantized, keep, coding, batch):
        captions = tuple(text.encode() for text in batch.text or [""] * len(batch.keys))
        return replace(super().tokens(quantized, keep, coding, batch), side={"text": Side(captions)})

    def reconstruct(self, z, tokens):
        captions = [torch.tensor(list(caption or b" ")) for caption in tokens.side["text"].values]
        bias = torch.stack([self.letters(caption).mean(0) for caption in captions])
        return self.decoder(z + bias[:, :, None, None])


class TwoPass(Tokenizer):
    """9: a second encoder pass sees the first reconstruction (recurrent tokenizers, ALIT)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(6, 3, 4, 4), FSQ([5, 5, 5]), Decoder(nn.ConvTranspose2d(3, 3, 4, 4)), (4, 4), (16, 16)
        )

    def latents(self, x):
        x = self._to_model(x)
        draft = self.quantizer(self.encoder(torch.cat([x, torch.zeros_like(x)], 1))).z
        return self.encoder(torch.cat([x, self.decoder(draft, ())], 1))

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        out = super().forward(batch, progress)
        return replace(out, losses={"second": F.mse_loss(out.x, batch.x)}, heads={"progress": torch.tensor(progress)})


class StochasticDecoder(Tokenizer):
    """10: the decoder starts from noise (rectified flow), drawn per sample from the seed."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 3, 4, 4), FSQ([5, 5, 5]), nn.ConvTranspose2d(6, 3, 4, 4), (4, 4), (16, 16))

    def reconstruct(self, z, tokens, seed: int = 0):
        noise = torch.stack([torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(seed)) for _ in z])
        return self.decoder(torch.cat([z, noise], 1))

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, seed: int = 0) -> Tensor:
        return self._from_model(self.reconstruct(self.embed(tokens), tokens, seed), tokens).clamp(-1, 1)
