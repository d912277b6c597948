"""FlexTok's transformer (arXiv 2502.13967): no biases, norms without parameters, SwiGLU, adaptive layer norm.

Legend: B batch, L sequence, W width, H heads, P patches (the first P of L), R registers (the rest).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class FlowTransformer(nn.Module):
    """A stack of blocks.

    layers       depth; width / head_dim heads each
    conditioned  blocks take a time embedding, with separate modulation for patches and registers
    """

    def __init__(
        self, width: int, layers: int, head_dim: int = 64, mlp_ratio: float = 4.0, conditioned: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if width % head_dim:
            raise ValueError(f"transformer: width {width} is not a multiple of head_dim {head_dim}")
        self.blocks = nn.ModuleList(FlowBlock(width, head_dim, mlp_ratio, conditioned) for _ in range(layers))
        self.gradient_checkpointing = gradient_checkpointing

    def forward(
        self, x: Tensor, mask: Tensor | None = None, time: Tensor | None = None, patches: int = 0
    ) -> Tensor:
        """x [B, L, W]; mask bool, broadcastable to [B, H, L, L]; time [B, W]; patches P."""
        for block in self.blocks:
            if self.gradient_checkpointing and self.training and x.requires_grad:
                x = checkpoint(block, x, mask, time, patches, use_reentrant=False)
            else:
                x = block(x, mask, time, patches)
        return x


class FlowBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with a time embedding each norm is scaled and shifted and each
    branch gated, patches and registers with numbers of their own, all zero at first (adaLN-zero, arXiv 2212.09748)."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: float, conditioned: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        hidden = int(2 * mlp_ratio * width / 3)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.modulation: nn.Linear | None = None
        if conditioned:
            self.modulation = nn.Linear(width, 12 * width)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, mask: Tensor | None, time: Tensor | None, patches: int) -> Tensor:
        if self.modulation is None or time is None:
            x = x + self.attend(norm(x), mask)
            return x + self.mlp(norm(x))
        parts = self.modulation(F.silu(time)).unflatten(-1, (2, 6, -1))
        sizes = torch.tensor([patches, x.shape[1] - patches], device=x.device)
        spread = parts.repeat_interleave(sizes, 1)  # [B, L, 6, W]
        gate1, gate2, shift1, scale1, shift2, scale2 = spread.unbind(2)
        x = x + gate1 * self.attend(norm(x) * (1 + scale1) + shift1, mask)
        return x + gate2 * self.mlp(norm(x) * (1 + scale2) + shift2)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention with normalised queries and keys and a scale of 8 / head_dim (muP)."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for proj in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(norm(q), norm(k), v, attn_mask=mask, scale=8 / self.head_dim)
        return self.out(y.transpose(1, 2).flatten(2))

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class TimeEmbedding(nn.Module):
    """t [B] in [0, 1] -> [B, W]: cosines and sines of 1000 t, then Linear, SiLU, Linear."""

    def __init__(self, width: int, frequencies: int = 256, max_period: float = 256.0) -> None:
        super().__init__()
        self.frequencies, self.max_period = frequencies, max_period
        self.hidden = nn.Linear(frequencies, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        half = self.frequencies // 2
        steps = torch.arange(half, device=t.device, dtype=torch.float32)
        angles = 1000 * t[:, None].float() * torch.exp(-math.log(self.max_period) * steps / half)
        waves = torch.cat([angles.cos(), angles.sin()], 1).to(self.hidden.weight)
        return self.out(F.silu(self.hidden(waves)))


def norm(x: Tensor) -> Tensor:
    """Layer norm over the last axis in float32, without parameters."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-5).to(x)


def sine_positions(width: int, grid: int) -> Tensor:
    """[W, g, g] two-dimensional sines and cosines: half of the channels for columns, half for rows."""
    quarter = width // 4
    omega = 1 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    one = torch.cat([angles.sin(), angles.cos()], 1).T  # [W / 2, g]
    columns, rows = one[:, None, :].expand(-1, grid, grid), one[:, :, None].expand(-1, grid, grid)
    return torch.cat([columns, rows]).float()
