"""Codes for what matters in an image: LaVIT's dynamic tokenizer (arXiv 2309.04669).

Legend: B batch, N patches, W width of EVA, D code dimension, n codes of an image, n_max the most in a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.keep import KeepCoding, Prefix, prefix_mask
from mmtok.models.image.lavit_blocks import FeatureDecoder, Merger, Selector
from mmtok.nn.vit_trunk import ViTTrunk
from mmtok.quantizers.base import Quantizer
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Quantized, Reconstruction, Tokens

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP, in [0, 1]


class LaVIT(Tokenizer):
    """x [B, 3, H, W], stretched to the trunk's size -> codes [B, 1, N], the first n of which are sent, n per image.

    A selector keeps the patches that say something, a merger folds the others into them, and every kept patch becomes a
    code, in raster order. Where they were is not sent: the decoder knows them by their rank. Encoding keeps a patch
    where the selector prefers to; the authors draw that (Gumbel), as training does.

    Codes give no picture but what a generator is steered with: `features(tokens)` are the trunk's features as the codes
    have them, `prompts(tokens)` the inputs of Stable Diffusion's cross-attention. `forward` gives the losses `features`
    (1 - cos to the trunk's), `ratio` (squared distance of the kept share from `keep_ratio`) and the quantizer's.

    encoder     its trunk, EVA-CLIP-g without its last norm, is frozen by the recipe
    keep_ratio  share of the patches that training aims at
    """

    encoder: LaVITEncoder
    decoder: FeatureDecoder

    def __init__(
        self, encoder: LaVITEncoder, quantizer: Quantizer, decoder: FeatureDecoder, keep_ratio: float = 1 / 3,
    ) -> None:
        if not encoder.dim == decoder.dim == quantizer.dim:
            raise ValueError(
                f"tokenizer: encoder.dim {encoder.dim}, quantizer {quantizer.dim}, decoder.dim {decoder.dim}:"
                " make them equal"
            )
        side = encoder.trunk.grid * (encoder.trunk.patch or 1)
        super().__init__(encoder, quantizer, decoder, (1, 1), (side, side))
        self.keep_ratio = keep_ratio

    @torch.no_grad()
    def encode(
        self, x: Tensor | Batch, *, num_tokens: int | None = None, num_quantizers: int | None = None,
        target: float | None = None,
    ) -> Tokens:
        """As `Tokenizer.encode`; the content chooses the length, so no length can be asked for."""
        batch = x if isinstance(x, Batch) else Batch.of(x)
        self._check_media(batch.x)
        if (num_tokens, num_quantizers, target) != (None, None, None):
            raise ValueError("encode: the number of codes follows from the image; ask for no length and no target")
        features = self.encoder.features(batch.x)
        quantized, keep = self._quantize(features, self.encoder.chosen(features))
        return self.tokens(quantized, keep, self.coding, batch)

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Losses of the features and of the share that is kept; no image."""
        with torch.no_grad():
            features = self.encoder.features(batch.x)
        scores = self.encoder.selector(features)
        noise = -torch.empty_like(scores).exponential_().log() if self.training else torch.zeros_like(scores)
        soft = (scores + noise).softmax(-1)[..., 0]
        hard = sure((scores + noise)[..., 0] > (scores + noise)[..., 1], soft)
        chosen = hard.to(soft) + (soft - soft.detach())  # straight through, and still exactly 0 or 1
        quantized, keep = self._quantize(features, chosen)
        found = self.decoder(quantized.z.transpose(1, 2), keep[0][:, 0])
        losses = quantized.losses | {
            "features": 1 - F.cosine_similarity(found.float(), features.float(), dim=-1).mean(),
            "ratio": (chosen.mean(1) - self.keep_ratio).square().mean(),
        }
        tokens = self.tokens(quantized, keep, self.coding, batch)
        stats = quantized.stats | {"kept": hard.float().mean()}
        return Reconstruction(None, tokens, losses, {"features": found}, stats)

    def features(self, tokens: Tokens) -> Tensor:
        """The trunk's patch features [B, N, W] that the codes stand for."""
        return self.decoder(self.embed(tokens).transpose(1, 2), self._kept(tokens))

    def prompts(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Cross-attention inputs [B, N, sum of widths] and the pooled vector (None with one width)."""
        return self.decoder.prompts(self.embed(tokens).transpose(1, 2), self._kept(tokens))

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        raise ValueError(
            "decode: LaVIT's codes steer a diffusion model that is no part of this package: give it `prompts(tokens)`"
        )

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(N,) for any size."""
        return (self.encoder.trunk.grid**2,)

    @property
    def coding(self) -> KeepCoding:
        return Prefix(-1)

    def _quantize(self, features: Tensor, chosen: Tensor) -> tuple[Quantized, tuple[Tensor, ...]]:
        """Codes of the patches where `chosen` [B, N] (0 or 1) says so, moved to the front, and their mask."""
        z = self.encoder.merged(features, chosen) * chosen[..., None]
        count = chosen.detach().sum(1).round().long()
        order = chosen.detach().sort(dim=1, descending=True, stable=True).indices
        packed = z.gather(1, order[..., None].expand_as(z)).transpose(1, 2)
        keep = (prefix_mask(count, chosen.shape[1])[:, None],)
        return self.quantizer(packed, keep), keep

    def _kept(self, tokens: Tokens) -> Tensor:
        return tokens.keep[0].expand_as(tokens.codes)[:, 0]


class LaVITEncoder(nn.Module):
    """Trunk, selector, merger, and a projection to the codes' space (Linear, Tanh, Linear).

    dim     D
    layers, heads, mlp_ratio  of the merger
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, trunk: ViTTrunk, dim: int = 32, layers: int = 12, heads: int = 16, mlp_ratio: float = 4.3637
    ) -> None:
        super().__init__()
        self.trunk, self.dim = trunk, dim
        self.selector = Selector(trunk.width)
        self.merger = Merger(trunk.width, layers, heads, mlp_ratio)
        self.hidden, self.project = nn.Linear(trunk.width, trunk.width), nn.Linear(trunk.width, dim)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] in [-1, 1] -> patch features [B, N, W]."""
        return self.trunk(stretched(x, self.trunk, self.mean, self.std))[:, 1:]

    def chosen(self, features: Tensor) -> Tensor:
        """0 or 1 [B, N]: patches that are kept, at least one an image."""
        scores = self.selector(features)
        return sure(scores[..., 0] > scores[..., 1], scores[..., 0]).to(features.dtype)

    def merged(self, features: Tensor, chosen: Tensor) -> Tensor:
        """[B, N, W] -> [B, N, D]; only kept places mean something."""
        return self.project(torch.tanh(self.hidden(self.merger(features, chosen))))


def sure(chosen: Tensor, score: Tensor) -> Tensor:
    """bool [B, N] with the best of an image's patches where nothing is chosen."""
    return chosen | (~chosen.any(1, keepdim=True) & (score == score.amax(1, keepdim=True)))


def stretched(x: Tensor, trunk: ViTTrunk, mean: Tensor, std: Tensor) -> Tensor:
    """Images in [-1, 1] at the trunk's size, shifted and scaled for it."""
    side = trunk.grid * (trunk.patch or 1)
    x = (x.float() + 1) / 2
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return (x - mean) / std
