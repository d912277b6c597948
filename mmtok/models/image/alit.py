"""Adaptive length by recurrence: ALIT (arXiv 2411.02393).

Legend: B batch, h w grid of patches, P = h * w, W width, E base channels, V base codes, I iterations, M latents an
iteration adds, n = i * M latents after i iterations, D code dimension.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.keep import KeepCoding, Prefix
from mmtok.models.image.conv import ConvTokenizer
from mmtok.models.image.on_base import BaseCodeDecoder, OnBase
from mmtok.models.image.titok import ProxyHead, token
from mmtok.models.image.vit import place
from mmtok.nn.attention import Transformer, init_vit, key_mask
from mmtok.quantizers.base import Quantizer
from mmtok.types import Batch, Quantized, Reconstruction, Tokens


class Pass(NamedTuple):
    """One iteration: its codes z [B, D, n], logits [B, V, h, w] over base codes, patches [B, P] that rest from now."""

    quantized: Quantized
    logits: Tensor
    resting: Tensor


class ALIT(OnBase):
    """Codes [B, 1, I, M] of which the first iterations are sent: 1 to I times M codes, one choice per image.

    Every iteration adds M fresh latents to the sequence of patches and latents and reads all of it again, so all codes
    of a longer length differ from those of a shorter one. `encode(num_tokens=)` takes multiples of M;
    `encode(target=)` gives each image the first length whose mean |x - y| (images in [0, 1]) is below it, and all
    iterations where none is (the authors: .07).

    A patch whose base code the decoder predicts with p >= `halting` is replaced by a mask token with probability p.
    In training p is drawn anew; otherwise with fixed random numbers, the same for every image.

    `forward` gives `nll` (a mean over iterations with the shares `emphasis`), `code` and the quantizer's losses (plain
    means); in training x is the image of the last iteration only with `draw`.

    iterations  I
    emphasis    shares of the iterations in `nll`
    draw        train one iteration, drawn per step, instead of all (stage 2)
    smoothing   of the labels in `nll`
    """

    encoder: AlitEncoder
    decoder: AlitDecoder

    def __init__(
        self, encoder: AlitEncoder, quantizer: Quantizer, decoder: AlitDecoder, base: ConvTokenizer | None = None,
        size: tuple[int, int] = (256, 256), halting: float | None = 0.55,
        emphasis: tuple[float, ...] = (2.5, 2.0, 1.5, 1.25, 1.0, 1.0, 1.0, 1.0), draw: bool = False,
        smoothing: float = 0.1,
    ) -> None:
        self.iterations, self.step = encoder.times.shape[:2]
        if len(emphasis) != self.iterations:
            raise ValueError(f"tokenizer.emphasis: one share for each of {self.iterations} iterations, got {emphasis}")
        if decoder.latent_positions.shape[0] < self.iterations * self.step:
            raise ValueError(
                f"tokenizer.decoder.max_latents is {decoder.latent_positions.shape[0]}, the encoder makes"
                f" {self.iterations * self.step}"
            )
        super().__init__(encoder, quantizer, decoder, base, encoder.patch, size)
        self.halting, self.emphasis, self.draw, self.smoothing = halting, tuple(emphasis), draw, smoothing

    @torch.no_grad()
    def encode(
        self, x: Tensor | Batch, *, num_tokens: int | None = None, num_quantizers: int | None = None,
        target: float | None = None,
    ) -> Tokens:
        """As `Tokenizer.encode`: `num_tokens` codes, or with `target` as few as meet this error, per image."""
        batch = x if isinstance(x, Batch) else Batch.of(x)
        self._check_media(batch.x)
        if num_quantizers is not None:
            raise ValueError("encode(num_quantizers=...): this model varies its number of tokens; use num_tokens")
        most = self.iterations * self.step
        if num_tokens is not None and (num_tokens % self.step or not self.step <= num_tokens <= most):
            raise ValueError(f"num_tokens: this model sends multiples of {self.step} up to {most}, got {num_tokens}")
        count = (num_tokens or most) // self.step
        pixels, (features, codes) = self._to_model(batch.x), self.read_base(batch)
        grid = codes.new_zeros(len(codes), 1, most)
        lengths = codes.new_full((len(codes),), count)
        waiting = torch.ones_like(lengths, dtype=torch.bool)
        wanted = range(count) if target is not None or self.halting is not None else (count - 1,)
        for i, one in self.rollout(pixels, features, codes, count, wanted):
            enough = waiting.clone()
            if i + 1 < count:
                enough &= self.error(one.logits, pixels, codes) < target if target is not None else ~waiting
            found = F.pad(one.quantized.grids[0], (0, most - (i + 1) * self.step))
            grid = torch.where(enough[:, None, None], found, grid)
            lengths = torch.where(enough, i + 1, lengths)
            waiting &= ~enough
            if not bool(waiting.any()):
                break
        shape = (1, self.iterations, self.step)
        keep = self.coding.masks(lengths[:, None] - 1, (shape,))
        quantized = Quantized(features, (grid.view(-1, *shape),))
        return self.tokens(quantized, keep, self.coding, batch)

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """All iterations, or one drawn at random in training with `draw`."""
        features, codes = self.read_base(batch)
        x = self._to_model(batch.x)
        count, wanted = self.iterations, range(self.iterations)
        if self.training and self.draw:
            count = 1 + int(torch.randint(self.iterations, ()))
            wanted = range(count - 1, count)
        total = sum(self.emphasis[i] for i in wanted)
        losses: dict[str, Tensor] = {}
        for i, one in self.rollout(x, features, codes, count, wanted):
            found = one.quantized.losses | self.code_losses(one.logits, codes, self.smoothing)
            for name, value in found.items():
                share = self.emphasis[i] / total if name == "nll" else 1 / len(wanted)
                losses[name] = losses.get(name, torch.zeros_like(value)) + share * value
        most = self.iterations * self.step
        shape = (1, self.iterations, self.step)
        grid = F.pad(one.quantized.grids[0], (0, most - count * self.step)).view(-1, *shape)
        keep = self.coding.masks(codes.new_full((len(codes), 1), count - 1), (shape,))
        tokens = self.tokens(Quantized(one.quantized.z, (grid,)), keep, self.coding, batch)
        show = self.base is not None and (self.draw or not self.training)
        image = self._from_model(self.image(one.logits), tokens) if show else None
        return Reconstruction(image, tokens, losses, {"base_logits": one.logits}, one.quantized.stats)

    def rollout(
        self, x: Tensor, features: Tensor, codes: Tensor, count: int, wanted: Container[int],
        draws: Tensor | None = None,
    ) -> Iterator[tuple[int, Pass]]:
        """The iterations below `count` that are `wanted`, with their numbers; others are neither coded nor decoded.

        x [B, 3, H, W] in [0, 1], features [B, E, h, w], codes int64 [B, h, w]; draws [I, B or 1, P] in [0, 1) say
        where patches come to rest
        """
        size = (codes.shape[1], codes.shape[2])
        places = 1 + codes[0].numel()
        if draws is None and not self.training:
            generator = torch.Generator().manual_seed(0)
            draws = torch.rand(self.iterations, 1, places - 1, generator=generator).to(features.device)
        sequence = self.encoder.start(x, features)
        for i in range(count):
            sequence = self.encoder.transformer(sequence)
            if i in wanted:
                quantized = self.quantizer(self.encoder.read(sequence, places))
                logits = self.decoder(quantized.z, size)
                p = logits.detach().softmax(1).gather(1, codes[:, None]).flatten(1)
                drawn = torch.rand_like(p) if draws is None else draws[i]
                resting = (drawn < p) & (p >= self.halting) if self.halting is not None else p < 0
                yield i, Pass(quantized, logits, resting)
                sequence = self.encoder.rest(sequence, resting, size)
            if i + 1 < count:
                sequence = self.encoder.grow(sequence, i + 1)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, I, M] -> padded image [B, 3, H, W] in [0, 1]; ValueError without a base."""
        return self.image(self.predict(z, tokens))

    def predict(self, z: Tensor, tokens: Tokens) -> Tensor:
        """Logits [B, V, h, w] over base codes from quantized latents and the sizes in `tokens`."""
        high, wide = (-(-int(n) // self.encoder.patch) for n in tokens.size.amax(0))
        sent = tokens.keep[0].expand(-1, 1, self.iterations, self.step)[:, 0].flatten(1)
        length = int(sent.sum(1).amax())
        keep = None if bool(sent[:, :length].all()) else sent[:, :length]
        return self.decoder(z.flatten(2)[..., :length], (high, wide), keep)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(I, M) for any size."""
        return (self.iterations, self.step)

    @property
    def coding(self) -> KeepCoding:
        return Prefix(2)


class AlitEncoder(nn.Module):
    """Parts of the recurrence over [class token, patches, latents]; patches join base features and own pixels.

    dim       D
    base_dim  E; the patch convolution fills the rest of the width
    grid      side of the patch grid it is trained at; other sizes get positions in between
    step, iterations  M and I
    """

    def __init__(
        self, dim: int, base_dim: int = 256, patch: int = 16, grid: int = 16, width: int = 1024, layers: int = 8,
        heads: int = 8, step: int = 32, iterations: int = 8, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.patch_embed = nn.Conv2d(3, width - base_dim, patch, stride=patch)
        self.class_token, self.mask_token = token(width), token(width)
        self.positions = token(1 + grid * grid, width)  # the class token's first
        self.latents, self.latent_positions = token(step, width), token(step, width)
        self.times = token(iterations, step, width)
        self.norm_pre, self.norm_grown, self.norm_post = (nn.LayerNorm(width) for _ in range(3))
        self.transformer = Transformer(width, layers, heads, gradient_checkpointing=gradient_checkpointing)
        self.project = nn.Linear(width, dim)
        self.apply(init_vit)

    def start(self, x: Tensor, base: Tensor) -> Tensor:
        """x [B, 3, H, W] in [0, 1], base [B, E, h, w] -> the first iteration's sequence [B, 1 + P + M, W]."""
        patches = F.normalize(torch.cat([base.to(x), self.patch_embed(x)], 1), dim=1)
        size = (patches.shape[2], patches.shape[3])
        parts = [
            (self.class_token + self.positions[0]).expand(len(x), 1, -1),
            patches.flatten(2).transpose(1, 2) + place(self.positions[1:], size),
            self._fresh(0).expand(len(x), -1, -1),
        ]
        return self.norm_pre(torch.cat(parts, 1))

    def grow(self, sequence: Tensor, iteration: int) -> Tensor:
        """[B, 1 + P + n, W] -> [B, 1 + P + n + M, W]."""
        return self.norm_grown(torch.cat([sequence, self._fresh(iteration).expand(len(sequence), -1, -1)], 1))

    def rest(self, sequence: Tensor, resting: Tensor, size: tuple[int, int]) -> Tensor:
        """The sequence with mask tokens where bool [B, P] says so."""
        places = resting.shape[1]
        hidden = self.mask_token + place(self.positions[1:], size)
        patches = torch.where(resting[..., None], hidden.to(sequence), sequence[:, 1 : 1 + places])
        return torch.cat([sequence[:, :1], patches, sequence[:, 1 + places :]], 1)

    def read(self, sequence: Tensor, places: int) -> Tensor:
        """Latents z [B, D, n] of a sequence that begins with `places` other tokens."""
        return self.project(self.norm_post(sequence[:, places:])).transpose(1, 2)

    def _fresh(self, iteration: int) -> Tensor:
        return self.latents + self.latent_positions + self.times[iteration]


class AlitDecoder(BaseCodeDecoder):
    """ViT over [class token, mask tokens, latents]; the mask tokens' outputs become logits over base codes.

    max_latents  rows of the table of latent positions; the other arguments as above
    """

    def __init__(
        self, dim: int, base_codes: int = 1024, base_dim: int = 256, grid: int = 16, width: int = 1024,
        layers: int = 8, heads: int = 8, max_latents: int = 256, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(base_codes, base_dim)
        self.embed = nn.Linear(dim, width)
        self.class_token, self.mask_token = token(width), token(width)
        self.positions = token(1 + grid * grid, width)  # the class token's first
        self.latent_positions = token(max_latents, width)
        self.norm_pre, self.norm_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, gradient_checkpointing=gradient_checkpointing)
        self.head = ProxyHead(width, base_codes)
        self.apply(init_vit)

    def forward(self, z: Tensor, size: tuple[int, int], keep: Tensor | None = None) -> Tensor:
        """z [B, D, n], keep bool [B, n] (None: all) -> logits [B, V, h, w] for size (h, w)."""
        count, length, places = z.shape[0], z.shape[2], 1 + size[0] * size[1]
        parts = [
            (self.class_token + self.positions[0]).expand(count, 1, -1),
            (self.mask_token + place(self.positions[1:], size)).expand(count, -1, -1),
            self.embed(z.transpose(1, 2)) + self.latent_positions[:length],
        ]
        seen = None if keep is None else key_mask(torch.cat([keep.new_ones(count, places), keep], 1))
        y = self.transformer(self.norm_pre(torch.cat(parts, 1)), seen)[:, 1:places]
        return self.head(self.norm_post(y).unflatten(1, size))
