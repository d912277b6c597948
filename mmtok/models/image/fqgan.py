"""Factorised codebooks on one convolutional trunk: FQGAN (arXiv 2411.16681).

Legend: B batch, K branches, C trunk channels, Z channels of a branch, D code dimension of a branch, h w code grid,
W width of a transformer, N = h * w.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.models.image.vit import place, positions
from mmtok.nn.attention import Transformer, init_vit
from mmtok.nn.conv2d import ConvDecoder2d, ConvEncoder2d
from mmtok.quantizers.split import Product
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Reconstruction, Tokens


class FactorizedTokenizer(Tokenizer):
    """x [B, 3, H, W] -> codes [B, K, h, w], one codebook a branch -> x. Any image size.

    The first branch is visual; every other one is tied to a frozen model's features while training: `forward` gives
    `heads["features_1"]` [B, W], ... which the objective compares with a teacher.

    quantizer  `Product` with a member per branch, visual first; `disentangle` pushes them apart
    features   one head for each branch but the first; used in training only
    """

    def __init__(
        self, encoder: BranchEncoder2d, quantizer: Product, decoder: ConvDecoder2d, features: list[FeatureHead],
        size: tuple[int, int] = (256, 256),
    ) -> None:
        dims: list[int] = [member.dim for member in quantizer.members]  # type: ignore[misc]
        if dims != encoder.code_dims:
            raise ValueError(f"tokenizer: encoder.code_dims {encoder.code_dims}, quantizer {dims}: make them equal")
        if len(features) != len(dims) - 1:
            raise ValueError(f"tokenizer.features: {len(dims)} branches need one head less, got {len(features)}")
        super().__init__(encoder, quantizer, decoder, (encoder.stride,) * 2, size)
        self.post_quant_conv = nn.Conv2d(sum(dims), decoder.z_channels, 1)
        self.features = nn.ModuleList(features)
        self._dims = dims

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Reconstruction, and the features that the semantic branches predict."""
        quantized, tokens = self.code(batch)
        x = self._from_model(self.reconstruct(quantized.z, tokens), tokens)
        parts = quantized.z.split(self._dims, 1)[1:]
        pairs = enumerate(zip(self.features, parts, strict=True), 1)
        heads = {f"features_{i}": head(part)[:, 0] for i, (head, part) in pairs}
        return Reconstruction(x, tokens, quantized.losses, heads, quantized.stats)

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, sum of D, h, w] -> padded image [B, 3, H, W]."""
        return self.decoder(self.post_quant_conv(z))


class BranchEncoder2d(ConvEncoder2d):
    """`ConvEncoder2d` whose trunk ends in a branch per codebook: x [B, 3, H, W] -> [B, sum of code_dims, h, w].

    code_dims  D of each branch, visual first
    grid       side of the code grid it is trained at; layers, heads: of the branches' transformers
    """

    def __init__(
        self, z_channels: int, code_dims: list[int], grid: int = 16, layers: int = 6, heads: int = 8,
        channels: int = 128, channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4), num_res_blocks: int = 2,
        attn_levels: tuple[int, ...] = (), groups: int = 32, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            z_channels, channels, channel_mult, num_res_blocks, attn_levels, groups=groups,
            gradient_checkpointing=gradient_checkpointing,
        )
        del self.norm_out, self.conv_out  # every branch has its own
        width = channels * channel_mult[-1]
        self.code_dims = list(code_dims)
        self.branches = nn.ModuleList(
            Branch(width, z_channels, dim, grid, layers, heads, groups) for dim in code_dims
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> the branches' latents side by side [B, sum of D, h, w]."""
        y = self.features(x)
        return torch.cat([branch(y) for branch in self.branches], 1)


class Branch(nn.Module):
    """Transformer over the trunk's map, group norm, SiLU, 3x3 conv to Z, 1x1 conv to D."""

    def __init__(
        self, channels: int, z_channels: int, dim: int, grid: int, layers: int, heads: int, groups: int
    ) -> None:
        super().__init__()
        self.positions = positions(grid, channels)
        self.norm_pre = nn.LayerNorm(channels)
        self.transformer = Transformer(channels, layers, heads)
        self.norm_post = nn.LayerNorm(channels)
        self.apply(init_vit)
        self.norm_out = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, z_channels, 3, padding=1)
        self.project = nn.Conv2d(z_channels, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, D, h, w]."""
        size = (x.shape[2], x.shape[3])
        y = self.norm_pre(x.flatten(2).transpose(1, 2) + place(self.positions, size))
        y = self.norm_post(self.transformer(y)).transpose(1, 2).unflatten(2, size)
        return self.project(self.conv_out(F.silu(self.norm_out(y))))


class FeatureHead(nn.Module):
    """Codes of a branch -> features of a frozen model: z [B, D, h, w] -> [B, 1 + N, W], the class token first.

    dim    D
    width  W, of the teacher's features
    grid   side of the code grid; images of other sizes are for inference, where this head rests
    """

    def __init__(self, dim: int, width: int, grid: int = 16, layers: int = 3, heads: int = 8) -> None:
        super().__init__()
        self.up = nn.Linear(dim, width)
        self.mix = nn.Linear(width, width)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(grid * grid + 1, width) * width**-0.5)
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.norm_post = nn.LayerNorm(width)
        self.apply(init_vit)

    def forward(self, z: Tensor) -> Tensor:
        y = self.mix(F.relu(self.up(z.flatten(2).transpose(1, 2))))
        if y.shape[1] + 1 != len(self.positions):
            raise ValueError(f"features: {y.shape[1]} codes for a head of {len(self.positions) - 1}: train at one size")
        y = torch.cat([self.class_token.expand(len(y), 1, -1), y], 1) + self.positions
        return self.norm_post(self.transformer(self.norm_pre(y)))
