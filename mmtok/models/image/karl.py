"""Adaptive length in one pass by halting: KARL (arXiv 2507.07995).

Legend: B batch, h w grid of patches, P = h * w, W width, E base channels, V base codes, T latents of a pass, N latents
that can be sent, D code dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.keep import Bitmap, KeepCoding, prefix_mask
from mmtok.models.image.conv import ConvTokenizer
from mmtok.models.image.on_base import BaseCodeDecoder, OnBase
from mmtok.models.image.titok import ProxyHead, token
from mmtok.nn.attention import Transformer, init_vit, key_mask
from mmtok.quantizers.base import Quantizer
from mmtok.types import Batch, Quantized, Reconstruction, Tokens

QUALITY_BINS = (
    0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38,
)  # fmt: skip


class Pass(NamedTuple):
    """One run of encoder, quantizer and decoder: logits [B, V, h, w] over base codes, halting logits [B, T]."""

    quantized: Quantized
    halting: Tensor
    logits: Tensor


class KARL(OnBase):
    """Codes [B, 1, N] of which `keep` says, latent by latent, what is sent (one bit a latent).

    The encoder is told the error that is wished for (`encode(target=...)`: mean |x - y| of images in [0, 1], default
    .05) and the most latents it may use (`num_tokens`), and marks the latents it does not need. They are neither sent
    nor seen by the decoder; masks are per sample. Training (`forward`) runs every image twice: with a random number of
    latents, to learn what error they leave; then with `budget` latents and that error as the wish, where the surplus
    must halt. Losses `nll` (base codes), `code` (distance to base codes), `halting`, and the quantizer's, means over
    both passes.

    base  frozen tokenizer whose codes are predicted and whose decoder makes the image. None works on
          `batch.features["base"]` [B, E, h, w] and gives no images
    num_latents  N; budget: latents of the second training pass; step, longest: the first draws from {step, 2 step, ...,
                 longest}; wishes: bins up to this error are wished for in the first
    """

    encoder: KarlEncoder
    decoder: KarlDecoder

    def __init__(
        self, encoder: KarlEncoder, quantizer: Quantizer, decoder: KarlDecoder, base: ConvTokenizer | None = None,
        size: tuple[int, int] = (256, 256), num_latents: int = 256, budget: int = 256, step: int = 16,
        longest: int = 368, wishes: float = 0.04, threshold: float = 0.75,
    ) -> None:
        most = encoder.latents.shape[0]
        if max(num_latents, budget, longest) > most or step < 1 or longest < step:
            raise ValueError(
                f"tokenizer: num_latents {num_latents}, budget {budget} and longest {longest} must not exceed the"
                f" encoder's max_latents {most}, and step must lie in 1..longest"
            )
        super().__init__(encoder, quantizer, decoder, base, encoder.patch, size)
        self.num_latents, self.budget, self.step, self.longest = num_latents, budget, step, longest
        self.wishes, self.threshold = wishes, threshold

    @torch.no_grad()
    def encode(
        self, x: Tensor | Batch, *, num_tokens: int | None = None, num_quantizers: int | None = None,
        target: float | None = None,
    ) -> Tokens:
        """As `Tokenizer.encode`: at most `num_tokens` latents, and as few as meet the error `target`."""
        batch = x if isinstance(x, Batch) else Batch.of(x)
        self._check_media(batch.x)
        if num_quantizers is not None:
            raise ValueError("encode(num_quantizers=...): this model varies its number of tokens; use num_tokens")
        if num_tokens is not None and not 1 <= num_tokens <= self.num_latents:
            raise ValueError(f"num_tokens: this model sends 1 to {self.num_latents}, got {num_tokens}")
        wish = torch.full((len(batch.x),), 0.05 if target is None else target, device=batch.x.device)
        features = self.read_base(batch)[0]
        z, halting = self.encoder(self._to_model(batch.x), features, wish, num_tokens or self.num_latents)
        keep = torch.sigmoid(halting) <= self.threshold
        # an image that halts everything still needs a code to be decoded from
        keep = keep | (~keep.any(1, keepdim=True) & (halting == halting.amin(1, keepdim=True)))
        quantized = self.quantizer(z)
        short = self.num_latents - z.shape[2]
        grid, mask = F.pad(quantized.grids[0], (0, short)), F.pad(keep[:, None], (0, short))
        padded = Quantized(quantized.z, (grid,), quantized.losses, quantized.stats)
        return self.tokens(padded, (mask,), self.coding, batch)

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Both training passes in training mode, one plain pass in eval mode; x is the last pass's image."""
        features, codes = self.read_base(batch)
        x = self._to_model(batch.x)
        count = len(x)
        if not self.training:
            wish = torch.full((count,), self.wishes, device=x.device)
            plain = self._run(x, features, wish, self.num_latents, None)
            return self._result([plain], [plain.halting.new_zeros(plain.halting.shape)], codes, None, batch)
        length = self.step * int(torch.randint(1, self.longest // self.step + 1, ()))
        bins = [value for value in self.encoder.bins.tolist() if value <= self.wishes] or [self.wishes]
        wish = torch.tensor(bins)[torch.randint(len(bins), (count,))].to(x.device)
        first = self._run(x, features, wish, length, None)
        with torch.no_grad():
            error = self.error(first.logits, x, codes)
        spared = max(0, self.budget - length)
        keep = prefix_mask(torch.full((count,), self.budget - spared, device=x.device), self.budget)
        second = self._run(x, features, error, self.budget, keep)
        targets = [first.halting.new_zeros(first.halting.shape), (~keep).to(second.halting.dtype)]
        return self._result([first, second], targets, codes, keep, batch)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, N] -> padded image [B, 3, H, W] in [0, 1]; ValueError without a base."""
        return self.image(self.predict(z, tokens))

    def predict(self, z: Tensor, tokens: Tokens) -> Tensor:
        """Logits [B, V, h, w] over base codes from quantized latents and the sizes in `tokens`."""
        high, wide = (-(-int(n) // self.encoder.patch) for n in tokens.size.amax(0))
        keep = tokens.keep[0].expand(z.shape[0], 1, z.shape[2])[:, 0]
        return self.decoder(z, (high, wide), keep)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(N,) for any size."""
        return (self.num_latents,)

    @property
    def coding(self) -> KeepCoding:
        return Bitmap()

    def _run(self, x: Tensor, features: Tensor, wish: Tensor, length: int, keep: Tensor | None) -> Pass:
        z, halting = self.encoder(x, features, wish, length)
        quantized = self.quantizer(z, None if keep is None else (keep[:, None],))
        return Pass(quantized, halting, self.decoder(quantized.z, (features.shape[2], features.shape[3]), keep))

    def _result(
        self, passes: list[Pass], targets: list[Tensor], codes: Tensor, keep: Tensor | None, batch: Batch
    ) -> Reconstruction:
        losses: dict[str, Tensor] = {}
        for one, target in zip(passes, targets, strict=True):
            found = one.quantized.losses | self.code_losses(one.logits, codes)
            found["halting"] = F.binary_cross_entropy_with_logits(one.halting.float(), target.float())
            for name, value in found.items():
                losses[name] = losses.get(name, torch.zeros_like(value)) + value / len(passes)
        last = passes[-1]
        grid = last.quantized.grids[0]
        mask = grid.new_ones(grid.shape, dtype=torch.bool) if keep is None else keep[:, None]
        tokens = self.tokens(last.quantized, (mask,), self.coding, batch)
        x = None if self.base is None else self._from_model(self.image(last.logits), tokens)
        return Reconstruction(x, tokens, losses, {"base_logits": last.logits}, last.quantized.stats)


class KarlEncoder(nn.Module):
    """ViT over [wished error, patches, T latents]; patches join own pixels and base features.

    dim          D
    base_dim     E; the patch convolution fills the rest of the width
    max_grid     side of the table of positions, which is resized (nearest) to the image's grid
    max_latents  rows of the table of latents
    bins         errors that have an embedding; a wish is rounded up
    """

    bins: Tensor

    def __init__(
        self, dim: int, base_dim: int = 256, patch: int = 16, width: int = 1024, layers: int = 8, heads: int = 8,
        max_grid: int = 64, max_latents: int = 512, halting_hidden: int = 512,
        bins: tuple[float, ...] = QUALITY_BINS, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.patch_embed = nn.Conv2d(3, width - base_dim, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn(width, max_grid, max_grid) * width**-0.5)
        self.latents = token(max_latents, width)
        self.register_buffer("bins", torch.tensor(bins), persistent=False)
        self.wishes = nn.Parameter(torch.tensor(bins)[:, None].repeat(1, width))
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, gradient_checkpointing=gradient_checkpointing)
        self.norm_post, self.norm_halting = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project = nn.Linear(width, dim)
        self.halting = nn.Sequential(nn.Linear(width, halting_hidden), nn.Tanh(), nn.Linear(halting_hidden, 1))
        self.apply(init_vit)

    def forward(self, x: Tensor, base: Tensor, wish: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """x [B, 3, H, W] in [0, 1], base [B, E, h, w], wish [B] -> z [B, D, T] and halting logits [B, T]."""
        patches = torch.cat([self.patch_embed(x), base.to(x)], 1)
        y = (patches + place(self.positions, patches)).flatten(2).transpose(1, 2)
        parts = [self.wishes[self.bin(wish)][:, None], y, self.latents[:length].expand(len(x), -1, -1)]
        y = self.transformer(self.norm_pre(torch.cat(parts, 1)))[:, -length:]
        z = self.project(self.norm_post(y)).transpose(1, 2)
        return z, self.halting(self.norm_halting(y))[..., 0]

    def bin(self, wish: Tensor) -> Tensor:
        """int64 [B]: the next bin at or above each wish, the last one beyond it."""
        return torch.bucketize(wish.to(self.bins), self.bins).clamp(max=len(self.bins) - 1)


class KarlDecoder(BaseCodeDecoder):
    """ViT over [mask tokens, latents]; the mask tokens' outputs become logits over base codes. Arguments as above."""

    def __init__(
        self, dim: int, base_codes: int = 1024, base_dim: int = 256, width: int = 1024, layers: int = 8, heads: int = 8,
        max_grid: int = 64, max_latents: int = 512, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(base_codes, base_dim)
        self.embed = nn.Linear(dim, width)
        self.mask_token = token(width)
        self.positions = nn.Parameter(torch.randn(width, max_grid, max_grid) * width**-0.5)
        self.latent_positions = token(max_latents, width)
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, gradient_checkpointing=gradient_checkpointing)
        self.norm_post = nn.LayerNorm(width)
        self.head = ProxyHead(width, base_codes)
        self.apply(init_vit)

    def forward(self, z: Tensor, size: tuple[int, int], keep: Tensor | None = None) -> Tensor:
        """z [B, D, T], keep bool [B, T] (None: all) -> logits [B, V, h, w] for size (h, w)."""
        count, length = z.shape[0], z.shape[2]
        masks = self.mask_token[:, None, None] + place(self.positions, size)
        latents = self.embed(z.transpose(1, 2)) + self.latent_positions[:length]
        y = self.norm_pre(torch.cat([masks.flatten(1).T.expand(count, -1, -1), latents], 1))
        places = size[0] * size[1]
        # nobody looks at a halted latent, so what happens at its own place reaches no output
        seen = None if keep is None else key_mask(torch.cat([keep.new_ones(count, places), keep], 1))
        return self.head(self.norm_post(self.transformer(y, seen)[:, :places]).unflatten(1, size))


def place(table: Tensor, like: Tensor | tuple[int, int]) -> Tensor:
    """[W, m, m] resized by nearest neighbour to the grid of a map or to (h, w)."""
    size = like if isinstance(like, tuple) else (like.shape[2], like.shape[3])
    return F.interpolate(table[None], size, mode="nearest")[0]
