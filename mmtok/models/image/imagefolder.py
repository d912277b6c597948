"""Grids of latent queries on pretrained transformers: ImageFolder (arXiv 2410.01756), XQ-GAN (arXiv 2412.01762) and
RobustTok (arXiv 2503.08354).

Legend: B batch, H W image, h w patches, W width, K branches, S side of the latent grid, D code dimension of a branch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtok.nn.vit_trunk import ViTTrunk
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Reconstruction, Tokens


class ImageFolder(Tokenizer):
    """x [B, 3, H, W] -> codes of K latent grids S x S (with several scales where the quantizer has them) -> x.

    The latents are queries of a transformer over the patches, but they keep the places of a grid. With two branches
    (`Product`) the last one is tied to the meaning of the image while training: `forward` gives `heads["semantic"]`
    [B, D], the mean of its values, which `mmtok.losses.LayerContrast` compares with a teacher. RobustTok is one branch
    with a `PerturbedVQ`, whose share of perturbed items falls linearly from `anneal[0]` to half at `anneal[1]` (shares
    of the training).

    tail  a policy over scales (`GridPrefix`): scale dropout
    """

    encoder: LatentGridEncoder
    decoder: LatentGridDecoder

    def __init__(
        self, encoder: LatentGridEncoder, quantizer: Quantizer, decoder: LatentGridDecoder,
        size: tuple[int, int] = (256, 256), tail: TailDrop | None = None, anneal: tuple[float, float] | None = None,
    ) -> None:
        total = encoder.dim * encoder.branches
        if not total == decoder.dim == quantizer.dim:
            raise ValueError(
                f"tokenizer: encoder makes {encoder.branches} x {encoder.dim} channels, quantizer takes"
                f" {quantizer.dim}, decoder.dim is {decoder.dim}: make them equal"
            )
        if anneal is not None and not (0 <= anneal[0] < anneal[1] and hasattr(quantizer, "strength")):
            raise ValueError(f"tokenizer.anneal: two ascending shares and a PerturbedVQ, got {anneal}")
        patch = encoder.trunk.patch
        if patch is None or patch != decoder.patch:
            raise ValueError(f"tokenizer: encoder.trunk.patch {patch}, decoder.patch {decoder.patch}: make them equal")
        super().__init__(encoder, quantizer, decoder, (patch, patch), size, tail)
        self.anneal = anneal

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(S, S) for any size."""
        return (self.encoder.side, self.encoder.side)

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Reconstruction, and the mean of the last branch's values."""
        if self.anneal is not None:
            begin, end = self.anneal
            passed = min(1.0, max(0.0, (progress - begin) / (end - begin)))
            self.quantizer.strength = 1 - 0.5 * passed  # type: ignore[assignment]
        quantized, tokens = self.code(batch)
        x = self._from_model(self.reconstruct(quantized.z, tokens), tokens)
        semantic = quantized.z[:, -self.encoder.dim :].mean((2, 3))
        return Reconstruction(x, tokens, quantized.losses, {"semantic": semantic}, quantized.stats)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, K * D, S, S] -> padded image [B, 3, H, W]."""
        high, wide = (-(-int(n) // stride) for n, stride in zip(tokens.size.amax(0), self.stride, strict=True))
        return self.decoder(z, (high, wide))


class LatentGridEncoder(nn.Module):
    """[class token, patches, K grids of latents] through a trunk; the latents' outputs, projected to D.

    trunk     DINOv2 ViT-B at patch 16 in the published models
    dim       D
    side      S
    branches  K
    """

    def __init__(self, trunk: ViTTrunk, dim: int, side: int = 16, branches: int = 1) -> None:
        super().__init__()
        self.trunk, self.dim, self.side, self.branches = trunk, dim, side, branches
        self.latents = nn.Parameter(torch.randn(branches * side * side, trunk.width) * 1e-6)
        self.levels = nn.Parameter(nn.init.trunc_normal_(torch.empty(1 + branches, trunk.width), std=_std(trunk)))
        self.project = nn.Linear(trunk.width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W], H and W multiples of the patch -> [B, K * D, S, S], branch after branch."""
        patches = self.trunk.embed(x) + self.levels[0]
        grids = self.latents.unflatten(0, (self.branches, -1))  # the grids stand side by side in the batch axis
        grids = self.trunk.place(grids, (self.side, self.side), class_token=False) + self.levels[1:, None]
        latents = grids.flatten(0, 1).expand(len(x), -1, -1)
        y = self.trunk.run(torch.cat([patches, latents], 1))[:, -latents.shape[1] :]
        z = self.project(y).unflatten(1, (self.branches, self.side, self.side))
        return z.movedim(-1, 2).flatten(1, 2)


class LatentGridDecoder(nn.Module):
    """[class token, mask tokens, class token, latents] through a trunk; the mask tokens' outputs become pixels.

    trunk  without patch embedding
    dim    K * D
    patch  side of the square of pixels that a mask token becomes
    """

    def __init__(self, trunk: ViTTrunk, dim: int, patch: int = 16) -> None:
        super().__init__()
        if trunk.patch is not None:
            raise ValueError("decoder.trunk.patch must be null: the decoder's trunk is fed with tokens")
        self.trunk, self.dim, self.patch = trunk, dim, patch
        self.embed = nn.Linear(dim, trunk.width)
        self.mask_token = nn.Parameter(torch.randn(trunk.width) * 1e-6)
        self.levels = nn.Parameter(nn.init.trunc_normal_(torch.empty(2, trunk.width), std=_std(trunk)))
        self.pixels = nn.Linear(trunk.width, 3 * patch * patch)

    def forward(self, z: Tensor, size: tuple[int, int]) -> Tensor:
        """z [B, K * D, S, S] -> x [B, 3, h * patch, w * patch] for size (h, w)."""
        latents = self.trunk.place(self.embed(z.flatten(2).transpose(1, 2)), (z.shape[2], z.shape[3]))
        masks = self.trunk.place(self.mask_token.expand(len(z), size[0] * size[1], -1), size)
        y = self.trunk.run(torch.cat([masks + self.levels[0], latents + self.levels[1]], 1))
        y = self.pixels(y[:, 1 : 1 + size[0] * size[1]]).unflatten(1, size)
        y = y.unflatten(-1, (self.patch, self.patch, 3)).permute(0, 5, 1, 3, 2, 4)
        return y.flatten(4, 5).flatten(2, 3)


def _std(trunk: ViTTrunk) -> float:
    return (1 / trunk.width / 3) ** 0.5
