"""1D image tokenizers with latent queries: TiTok (arXiv 2406.07550) and One-D-Piece (arXiv 2501.10064).

Legend: B batch, s image side, g = s / patch, P = g * g patches, W width, N latent tokens, D code dimension,
th tw tiles of s x s in an image, T = th * tw, S = (N,) or (th, tw, N).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtok.nn.attention import Transformer, init_vit, key_mask
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop
from mmtok.tokenizer import Tokenizer


class TiTok(Tokenizer):
    """An image as a sequence of N codes that belong to no place: x [B, 3, s, s] -> codes [B, 1, N].

    Any image size: the image is padded to multiples of s; more than one tile gives codes [B, 1, th, tw, N], every
    tile with the same prefix. With `tail` set, any prefix of the N codes decodes.

    encoder, decoder  agree in image_size, num_latents and dim
    tail, unit_range: see `Tokenizer`
    """

    def __init__(
        self, encoder: TiTokEncoder, quantizer: Quantizer, decoder: TiTokDecoder, tail: TailDrop | None = None,
        unit_range: bool = False,
    ) -> None:
        for name in ("image_size", "num_latents", "dim"):
            if getattr(encoder, name) != getattr(decoder, name):
                raise ValueError(
                    f"tokenizer: encoder.{name} is {getattr(encoder, name)}, decoder.{name} {getattr(decoder, name)}:"
                    " make them equal"
                )
        if encoder.dim != quantizer.dim:
            raise ValueError(f"tokenizer: encoder.dim is {encoder.dim}, quantizer.dim {quantizer.dim}: make them equal")
        side = (encoder.image_size, encoder.image_size)
        super().__init__(encoder, quantizer, decoder, side, side, tail, unit_range)
        self.num_latents = encoder.num_latents
        self._check_head(decoder)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(N,) for images of one tile, (th, tw, N) for larger ones."""
        tiles = super().positions(size)
        return (*tiles, self.num_latents) if max(tiles) > 1 else (self.num_latents,)

    def _check_head(self, decoder: TiTokDecoder) -> None:
        if decoder.proxy_codes is not None:
            raise ValueError("decoder.proxy_codes: proxy codes need mmtok.models.image.titok_proxy.ProxyTiTok")


class TiTokEncoder(nn.Module):
    """ViT over [class token, patches, N latent queries]; the queries' outputs are the latents.

    dim             D of the latents
    num_latents     N
    image_size      s, a multiple of patch
    width, layers, heads: small 512, 8, 8; base 768, 12, 12; large 1024, 24, 16
    legacy_readout  read the [N, W] outputs as [W, N] without transposing them, as the released two-stage TiTok and
                    all One-D-Piece weights do (their next layer learned around it)
    gradient_checkpointing  recompute blocks in the backward pass
    """

    def __init__(
        self, dim: int, num_latents: int, image_size: int = 256, patch: int = 16, width: int = 512, layers: int = 8,
        heads: int = 8, mlp_ratio: float = 4.0, legacy_readout: bool = False, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.num_latents, self.image_size = dim, num_latents, image_size
        self.legacy_readout = legacy_readout
        patches = count_patches(image_size, patch)
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = token(width)
        self.positions = token(patches + 1, width)
        self.latents = token(num_latents, width)
        self.latent_positions = token(num_latents, width)
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp_ratio, gradient_checkpointing=gradient_checkpointing)
        self.norm_post = nn.LayerNorm(width)
        self.project = nn.Linear(width, dim)
        self.apply(init_vit)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W], H and W multiples of s -> [B, D, *S]."""
        tiles = (x.shape[2] // self.image_size, x.shape[3] // self.image_size)
        z = self.encode_tiles(to_tiles(x, tiles)).unflatten(0, (x.shape[0], *tiles)).movedim(-2, 1)
        return z if max(tiles) > 1 else z.flatten(2)

    def encode_tiles(self, x: Tensor) -> Tensor:
        """[B * T, 3, s, s] -> [B * T, D, N]."""
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        batch = x.shape[0]
        parts = [
            (self.class_token + self.positions[0]).expand(batch, 1, -1),
            patches + self.positions[1:],
            (self.latents + self.latent_positions).expand(batch, -1, -1),
        ]
        y = self.transformer(self.norm_pre(torch.cat(parts, 1)))
        y = self.norm_post(y[:, -self.num_latents :])
        if self.legacy_readout:
            y = y.reshape(batch, -1, self.num_latents).transpose(1, 2)
        return self.project(y).transpose(1, 2)


class TiTokDecoder(nn.Module):
    """ViT over [class token, P mask tokens, latents]; the mask tokens' outputs become pixels, or proxy logits.

    Arguments as in `TiTokEncoder`.

    proxy_codes  None: pixels by a linear layer and a 3x3 convolution. A number: logits over so many codes of another
                 tokenizer, one code a patch
    """

    def __init__(
        self, dim: int, num_latents: int, image_size: int = 256, patch: int = 16, width: int = 512, layers: int = 8,
        heads: int = 8, mlp_ratio: float = 4.0, proxy_codes: int | None = None, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.num_latents, self.image_size = dim, num_latents, image_size
        self.proxy_codes = proxy_codes
        patches = count_patches(image_size, patch)
        self.grid = image_size // patch
        self.embed = nn.Linear(dim, width)
        self.class_token = token(width)
        self.mask_token = token(width)
        self.positions = token(patches + 1, width)
        self.latent_positions = token(num_latents, width)
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp_ratio, gradient_checkpointing=gradient_checkpointing)
        self.norm_post = nn.LayerNorm(width)
        self.head = PixelHead(width, patch) if proxy_codes is None else ProxyHead(width, proxy_codes)
        self.apply(init_vit)

    def forward(
        self, z: Tensor, keep: tuple[Tensor, ...] | None = None, context: Tensor | None = None
    ) -> Tensor:
        """z [B, D, *S] -> x [B, 3, th * s, tw * s], or logits [B, proxy_codes, th * g, tw * g].

        keep     one bool mask, broadcastable to [B, 1, *S]. The sequence ends at the longest kept prefix, and a mask
                 is used only where items differ; None keeps everything
        context  [B, M, W] tokens that follow the latents in every tile's sequence
        """
        batch, tiles = z.shape[0], tuple(z.shape[2:-1]) or (1, 1)
        valid = None
        if keep is not None:
            mask = keep[0].expand(batch, 1, *z.shape[2:])[:, 0]
            last = (mask * torch.arange(1, z.shape[-1] + 1, device=z.device)).amax()
            length, kept = torch.stack([last, mask.sum()]).tolist()  # one read from the device for both
            z = z[..., :length]
            if kept < mask[..., 0].numel() * length:
                valid = mask[..., :length].reshape(-1, length)
        z = z.reshape(*z.shape[:2], *tiles, -1).movedim(1, -2).flatten(0, 2)
        if context is not None:
            context = context.repeat_interleave(tiles[0] * tiles[1], 0)
        return from_tiles(self.decode_tiles(z, valid, context).unflatten(0, (batch, *tiles)))

    def decode_tiles(self, z: Tensor, valid: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """z [B * T, D, n] with n <= N, valid bool [B * T, n], context [B * T, M, W]
        -> [B * T, 3, s, s] or [B * T, proxy_codes, g, g]."""
        batch, _, length = z.shape
        parts = [
            (self.class_token + self.positions[0]).expand(batch, 1, -1),
            (self.mask_token + self.positions[1:]).expand(batch, -1, -1),
            self.embed(z.transpose(1, 2)) + self.latent_positions[:length],
            *([] if context is None else [context]),
        ]
        seen = None
        if valid is not None:
            always = valid.new_ones(batch, self.positions.shape[0])
            read = valid.new_ones(batch, 0 if context is None else context.shape[1])
            seen = key_mask(torch.cat([always, valid, read], 1))
        y = self.transformer(self.norm_pre(torch.cat(parts, 1)), seen)
        y = self.norm_post(y[:, 1 : self.positions.shape[0]])
        return self.head(y.unflatten(1, (self.grid, self.grid)))


class PixelHead(nn.Module):
    """[B, g, g, W] -> [B, 3, g * patch, g * patch]: linear to patch * patch * 3 values, then a 3x3 conv."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(width, patch * patch * 3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, y: Tensor) -> Tensor:
        pixels = self.linear(y).unflatten(-1, (self.patch, self.patch, 3)).permute(0, 5, 1, 3, 2, 4)
        return self.conv(pixels.flatten(4, 5).flatten(2, 3))


class ProxyHead(nn.Module):
    """[B, g, g, W] -> logits [B, codes, g, g]."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 2 * width)
        self.logits = nn.Linear(2 * width, codes)

    def forward(self, y: Tensor) -> Tensor:
        return self.logits(torch.tanh(self.hidden(y))).movedim(-1, 1)


def token(*shape: int) -> nn.Parameter:
    """Learned embeddings [*shape], the last axis the width: normal of std width ** -0.5."""
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


def count_patches(image_size: int, patch: int) -> int:
    """P; ValueError when the patches do not fill the image."""
    if image_size % patch:
        raise ValueError(f"image_size {image_size} is not a multiple of patch {patch}")
    return (image_size // patch) ** 2


def to_tiles(x: Tensor, tiles: tuple[int, int]) -> Tensor:
    """[B, C, th * s, tw * s] -> [B * th * tw, C, s, s]."""
    x = x.unflatten(3, (tiles[1], -1)).unflatten(2, (tiles[0], -1))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def from_tiles(x: Tensor) -> Tensor:
    """[B, th, tw, C, s, s] -> [B, C, th * s, tw * s]."""
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
