"""One index for meaning and pixels: TokenFlow (arXiv 2412.03069).

Legend: B batch, H W image, h w code grid, P = h * w, Z pixel channels, W width of the semantic encoder, Ds Dp code
dimensions of the semantic and the pixel part, E teacher width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.conv2d import ConvDecoder2d, ConvEncoder2d
from mmtok.nn.vit_trunk import ViTTrunk
from mmtok.quantizers.base import Quantizer
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Reconstruction, Tokens


class TokenFlow(Tokenizer):
    """x [B, 3, H, W] -> codes on several grids, each of which picks a semantic and a pixel vector -> x.

    A pretrained transformer and a convolutional encoder look at the image; their latents lie side by side on one grid,
    and `ScaleResidual` around a `SharedIndexVQ` codes them with shared indices. `forward` also gives
    `heads["teacher_features"]` [B, P, E], what the semantic half says of the teacher's patch features; `meaning(z)`
    gives it for any codes.

    encoder, decoder    of the pixels; their stride sets the pixels of a code
    semantic, meaning   encoder and decoder of the meaning
    size                of the images. Where a semantic patch has other pixels than the stride (SigLIP), images are
                        resized for the pixel encoder and back, and other sizes than `size` are padded to it
    """

    encoder: ConvEncoder2d
    decoder: ConvDecoder2d

    def __init__(
        self, encoder: ConvEncoder2d, semantic: SemanticEncoder, quantizer: Quantizer, decoder: ConvDecoder2d,
        meaning: SemanticDecoder, size: tuple[int, int] = (224, 224),
    ) -> None:
        self.patch = semantic.trunk.patch or 0
        if encoder.stride != decoder.stride:
            raise ValueError(f"tokenizer: encoder has stride {encoder.stride}, decoder {decoder.stride}: make equal")
        pixel_dim = quantizer.dim - semantic.dim
        if pixel_dim < 1 or meaning.dim != semantic.dim:
            raise ValueError(
                f"tokenizer: semantic.dim {semantic.dim} and meaning.dim {meaning.dim} must be equal, and smaller than"
                f" the quantizer's {quantizer.dim}"
            )
        free = self.patch == encoder.stride
        super().__init__(encoder, quantizer, decoder, (encoder.stride,) * 2 if free else size, size)
        self.free = free
        self.semantic, self.meaning_decoder = semantic, meaning
        self.quant_conv = nn.Conv2d(encoder.z_channels, pixel_dim, 1)
        self.post_quant_conv = nn.Conv2d(pixel_dim, decoder.z_channels, 1)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(h, w): images of a fixed size have as many whole semantic patches as fit."""
        if self.free:
            return super().positions(size)
        return tuple(n // self.patch for n in self.size)

    def latents(self, x: Tensor) -> Tensor:
        """z [B, Ds + Dp, h, w]; ValueError for images larger than a model of a fixed size takes."""
        if not self.free and any(n > most for n, most in zip(x.shape[2:], self.size, strict=True)):
            raise ValueError(f"encode: this model takes images up to {list(self.size)}, got {list(x.shape[2:])}")
        x = self._to_model(x)
        meaning = self.semantic(x)
        if not self.free:
            x = F.interpolate(x, [n * self.encoder.stride for n in meaning.shape[2:]], mode="bicubic")
        return torch.cat([meaning, self.quant_conv(self.encoder(x))], 1)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, Ds + Dp, h, w] -> padded image [B, 3, H, W]."""
        x = self.decoder(self.post_quant_conv(z[:, self.semantic.dim :]))
        return x if self.free else F.interpolate(x, self.size, mode="bicubic")

    def meaning(self, z: Tensor) -> Tensor:
        """Codes' values [B, Ds + Dp, h, w] (`embed(tokens)`) -> teacher features [B, P, E]."""
        return self.meaning_decoder(z[:, : self.semantic.dim])

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Reconstruction, and the teacher's features as the codes have them."""
        quantized, tokens = self.code(batch)
        x = self._from_model(self.reconstruct(quantized.z, tokens), tokens)
        heads = {"teacher_features": self.meaning(quantized.z)}
        return Reconstruction(x, tokens, quantized.losses, heads, quantized.stats)


class SemanticEncoder(nn.Module):
    """Images [B, 3, H, W] -> [B, Ds, h, w]: patch outputs of a trunk, Linear, Tanh, Linear.

    trunk  CLIP ViT-B/16 or SigLIP-so400m, trained along; it sees [-1, 1]
    last   block after which it is read (SigLIP: the last but one); None: the end, after the last norm
    """

    def __init__(self, trunk: ViTTrunk, dim: int, last: int | None = None) -> None:
        super().__init__()
        self.trunk, self.dim, self.last = trunk, dim, last
        self.hidden, self.project = nn.Linear(trunk.width, trunk.width), nn.Linear(trunk.width, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk.run(self.trunk.embed(x), self.last)
        y = y[:, int(self.trunk.class_token is not None) :]
        assert self.trunk.patch is not None
        size = (x.shape[2] // self.trunk.patch, x.shape[3] // self.trunk.patch)
        return self.project(torch.tanh(self.hidden(y))).transpose(1, 2).unflatten(2, size)


class SemanticDecoder(nn.Module):
    """[B, Ds, h, w] -> teacher features [B, P, E]: Linear, a small trunk, Linear, Tanh, Linear.

    trunk     without patch embedding
    features  E
    """

    def __init__(self, trunk: ViTTrunk, dim: int, features: int) -> None:
        super().__init__()
        if trunk.patch is not None:
            raise ValueError("meaning.trunk.patch must be null: this trunk is fed with codes")
        self.trunk, self.dim = trunk, dim
        self.embed = nn.Linear(dim, trunk.width)
        self.hidden, self.project = nn.Linear(trunk.width, trunk.width), nn.Linear(trunk.width, features)

    def forward(self, z: Tensor) -> Tensor:
        y = self.trunk.place(self.embed(z.flatten(2).transpose(1, 2)), (z.shape[2], z.shape[3]))
        y = self.trunk.run(y)[:, int(self.trunk.class_token is not None) :]
        return self.project(torch.tanh(self.hidden(y)))
