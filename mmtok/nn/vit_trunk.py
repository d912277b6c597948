"""Vision transformers as they are pretrained elsewhere: DINO, DINOv2, EVA-CLIP, CLIP, SigLIP.

Legend: B batch, L sequence, W width, g side of the patch grid of the pretraining, h w patch grid of an image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmtok.nn.attention import MLP, Attention, init_vit


class ViTTrunk(nn.Module):
    """Images [B, 3, H, W] -> features [B, 1 + h * w, W], the class token first; any H and W that patches fill.

    width, layers, heads  W, depth, heads
    grid          g; other grids get positions in between (bicubic)
    patch         side of a patch; None: no patch embedding, for a trunk that is fed with tokens (`place`, `run`)
    hidden        of the MLPs; None: 4 W
    eps           of the norms (timm 1e-6, CLIP 1e-5)
    layer_scale   start value of a learned factor on every branch (DINOv2: 1e-5); None: no factors
    drop_path     chance that a sample skips a branch of the last block; falls linearly to 0 at the first
    class_token   SigLIP has none
    norm_pre, norm_post  norms around the blocks (CLIP has the first, EVA as LaVIT and SEED use it neither)
    patch_bias    of the patch embedding (CLIP: none)
    activation    of the MLPs; None: exact GELU
    """

    def __init__(
        self, width: int, layers: int, heads: int, grid: int, patch: int | None = 16, hidden: int | None = None,
        eps: float = 1e-6, layer_scale: float | None = None, drop_path: float = 0.0, class_token: bool = True,
        norm_pre: bool = False, norm_post: bool = True, patch_bias: bool = True, activation: nn.Module | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.grid, self.patch = width, grid, patch
        self.gradient_checkpointing = gradient_checkpointing
        self.patch_embed = None if patch is None else nn.Conv2d(3, width, patch, stride=patch, bias=patch_bias)
        self.class_token = nn.Parameter(torch.randn(width) * 0.02) if class_token else None
        self.positions = nn.Parameter(torch.randn(grid * grid + int(class_token), width) * 0.02)
        self.norm_pre: nn.Module = nn.LayerNorm(width, eps) if norm_pre else nn.Identity()
        rates = [drop_path * i / max(1, layers - 1) for i in range(layers)]
        self.blocks = nn.ModuleList(
            ViTBlock(width, heads, hidden or 4 * width, eps, layer_scale, rate, activation) for rate in rates
        )
        self.norm_post: nn.Module = nn.LayerNorm(width, eps) if norm_post else nn.Identity()
        self.apply(init_vit)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> what enters the blocks [B, 1 + h * w, W]."""
        assert self.patch_embed is not None
        y = self.patch_embed(x)
        return self.place(y.flatten(2).transpose(1, 2), (y.shape[2], y.shape[3]))

    def place(self, tokens: Tensor, size: tuple[int, int], class_token: bool = True) -> Tensor:
        """Tokens [B, h * w, W] of a grid (h, w) with positions, and the class token in front when there is one."""
        first = self.positions[: len(self.positions) - self.grid**2]
        y = tokens + resized(self.positions[len(first) :], self.grid, size)
        if self.class_token is None or not class_token:
            return y
        return torch.cat([(self.class_token + first[0]).expand(len(y), 1, -1), y], 1)

    def run(self, y: Tensor, last: int | None = None) -> Tensor:
        """[B, L, W] -> [B, L, W] after all blocks (or the first `last`, without the last norm)."""
        y = self.norm_pre(y)
        for block in self.blocks[:last]:
            if self.gradient_checkpointing and self.training and y.requires_grad:
                y = checkpoint(block, y, use_reentrant=False)
            else:
                y = block(y)
        return self.norm_post(y) if last is None else y


class ViTBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with optional learned factors and stochastic depth."""

    def __init__(
        self, width: int, heads: int, hidden: int, eps: float, layer_scale: float | None, drop_path: float,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attention = Attention(width, heads)
        self.mlp = MLP(width, hidden) if activation is None else ActivatedMLP(width, hidden, activation)
        self.scale1 = self.scale2 = None
        if layer_scale is not None:
            self.scale1 = nn.Parameter(torch.full((width,), layer_scale))
            self.scale2 = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] -> [B, L, W]."""
        x = x + self._branch(self.attention(self.norm1(x)), self.scale1)
        return x + self._branch(self.mlp(self.norm2(x)), self.scale2)

    def _branch(self, y: Tensor, scale: Tensor | None) -> Tensor:
        y = y if scale is None else y * scale
        if not self.training or not self.drop_path:
            return y
        stays = torch.rand(len(y), 1, 1, device=y.device) >= self.drop_path
        return y * stays / (1 - self.drop_path)


class ActivatedMLP(MLP):
    """`MLP` with another activation."""

    def __init__(self, dim: int, hidden: int, activation: nn.Module) -> None:
        super().__init__(dim, hidden)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x) (OpenAI's CLIP)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TanhGELU(nn.Module):
    """GELU's tanh form (SigLIP)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


def resized(table: Tensor, grid: int, size: tuple[int, int]) -> Tensor:
    """Positions [h * w, W] for a grid (h, w) from a table [g * g, W]: bicubic, antialiased, as timm does."""
    if size == (grid, grid):
        return table
    square = table.T.unflatten(1, (grid, grid))[None].float()
    return F.interpolate(square, size, mode="bicubic", antialias=True)[0].flatten(1).T.to(table)
