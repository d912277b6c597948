"""2D transformer tokenizer: one code per patch (BSQ-ViT, arXiv 2406.07548).

Legend: B batch, H W image, h w patches, W width, D code dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.attention import Transformer, init_vit
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop
from mmtok.tokenizer import Tokenizer


class ViTTokenizer(Tokenizer):
    """x [B, 3, H, W] -> codes [B, K, h, w] -> x, with h = H / patch; any image size.

    encoder, decoder  agree in patch and dim
    size              reference (H, W) for `spec`; the one the positions were learned at
    tail, unit_range: see `Tokenizer`
    """

    def __init__(
        self, encoder: ViTEncoder, quantizer: Quantizer, decoder: ViTDecoder, size: tuple[int, int] = (256, 256),
        tail: TailDrop | None = None, unit_range: bool = False,
    ) -> None:
        if encoder.patch != decoder.patch:
            raise ValueError(f"tokenizer: encoder.patch {encoder.patch}, decoder.patch {decoder.patch}: make equal")
        if not encoder.dim == decoder.dim == quantizer.dim:
            raise ValueError(
                f"tokenizer: encoder.dim {encoder.dim}, quantizer {quantizer.dim}, decoder.dim {decoder.dim}:"
                " make them equal"
            )
        super().__init__(encoder, quantizer, decoder, (encoder.patch,) * 2, size, tail, unit_range)


class ViTEncoder(nn.Module):
    """Patches without bias, learned positions, norm, transformer, norm, linear to D.

    grid  patches along one side of the images it is trained on; other sizes get positions in between (bicubic)
    """

    def __init__(
        self, dim: int, grid: int, patch: int = 8, width: int = 768, layers: int = 12, heads: int = 12,
        mlp_ratio: float = 4.0, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.patch = dim, patch
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.positions = positions(grid, width)
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp_ratio, gradient_checkpointing=gradient_checkpointing)
        self.norm_post = nn.LayerNorm(width)
        self.project = nn.Linear(width, dim)
        self.apply(init_vit)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W], H and W multiples of patch -> [B, D, h, w]."""
        y = self.patch_embed(x)
        size = (y.shape[2], y.shape[3])
        y = self.norm_pre(y.flatten(2).transpose(1, 2) + place(self.positions, size))
        return self.project(self.norm_post(self.transformer(y))).transpose(1, 2).unflatten(2, size)


class ViTDecoder(nn.Module):
    """Linear from D, learned positions, norm, transformer, norm, then Linear, Tanh, Linear to the patch's pixels.

    hidden  width between the two linear layers of the head; the other arguments as in `ViTEncoder`
    """

    def __init__(
        self, dim: int, grid: int, patch: int = 8, width: int = 768, layers: int = 12, heads: int = 12,
        mlp_ratio: float = 4.0, hidden: int = 3072, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.patch = dim, patch
        self.embed = nn.Linear(dim, width)
        self.positions = positions(grid, width)
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp_ratio, gradient_checkpointing=gradient_checkpointing)
        self.norm_post = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, hidden)
        self.pixels = nn.Linear(hidden, 3 * patch * patch)
        self.apply(init_vit)

    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Tensor:
        """z [B, D, h, w] -> x [B, 3, h * patch, w * patch]; what is not kept is already zero in z."""
        y = self.embed(z.flatten(2).transpose(1, 2)) + place(self.positions, (z.shape[2], z.shape[3]))
        y = self.norm_post(self.transformer(self.norm_pre(y)))
        y = self.pixels(torch.tanh(self.hidden(y)))
        y = y.unflatten(1, z.shape[2:]).unflatten(-1, (3, self.patch, self.patch))
        return y.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def positions(grid: int, width: int) -> nn.Parameter:
    """Learned embeddings [grid * grid, W]: normal of std W ** -0.5."""
    return nn.Parameter(torch.randn(grid * grid, width) * width**-0.5)


def place(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Positions [h * w, W] for a grid of this size from a square table [g * g, W]; resized when they differ."""
    side = round(table.shape[0] ** 0.5)
    if size == (side, side):
        return table
    square = table.T.unflatten(1, (side, side))[None].float()
    return F.interpolate(square, size, mode="bicubic", antialias=True)[0].flatten(1).T.to(table)
