"""Convolutional encoder and decoder for images, the VQGAN family.

Legend: B batch, C channels, H W image, h w latent grid, Z latent channels.

taming VQGAN, LlamaGen, MaskGIT-VQGAN, IBQ, VAR, Open-MAGVIT2 and BAE are points of one design: levels of residual
blocks with a factor of two between them, and a middle. What differs is plain arguments: attention (`attn_levels`,
`mid_attention`), biases, how a level changes size (`downsample`, `upsample`), norms at the code (`adaptive`,
`norm_first`), and MaskGIT's `shortcut_on_branch`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmtok.kernels.attention import attention
from mmtok.nn.magvit2d import AdaptiveNorm2d


class ConvEncoder2d(nn.Module):
    """x [B, in_channels, H, W] -> z [B, z_channels, H / stride, W / stride], stride = 2 ** (levels - 1).

    channels       width of level 0; level i has channels * channel_mult[i]
    num_res_blocks residual blocks a level
    attn_levels    levels (0 = full resolution) with attention after every residual block
    mid_blocks     residual blocks in the middle, with attention between them when `mid_attention`
    bias, in_bias  of the residual blocks' 3x3 convolutions and shortcuts, and of `conv_in`
    out_kernel     kernel of `conv_out`
    out_activation SiLU between the last norm and `conv_out` (BAE has none)
    downsample     channels -> module that halves H and W
    shortcut_on_branch, groups: see `ResBlock2d`
    gradient_checkpointing  recompute each level in the backward pass
    """

    def __init__(
        self, z_channels: int, channels: int = 128, channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2, attn_levels: tuple[int, ...] = (), mid_blocks: int = 2, mid_attention: bool = True,
        bias: bool = True, in_bias: bool = True, out_kernel: int = 3,
        downsample: Callable[[int], nn.Module] | None = None, shortcut_on_branch: bool = False, groups: int = 32,
        in_channels: int = 3, gradient_checkpointing: bool = False, out_activation: bool = True,
    ) -> None:
        super().__init__()
        down = downsample if downsample is not None else StridedConv2d
        last = len(channel_mult) - 1
        check_levels(attn_levels, last)
        self.z_channels = z_channels
        self.stride = 2**last
        self.gradient_checkpointing = gradient_checkpointing
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1, bias=in_bias)
        self.levels = nn.ModuleList()
        width = channels
        for i, mult in enumerate(channel_mult):
            resample = down(channels * mult) if i < last else None
            self.levels.append(Level2d(
                width, channels * mult, num_res_blocks, i in attn_levels, resample, bias, shortcut_on_branch, groups
            ))
            width = channels * mult
        self.mid = middle(width, mid_blocks, mid_attention, bias, shortcut_on_branch, groups)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.out_activation: nn.Module = nn.SiLU() if out_activation else nn.Identity()
        self.conv_out = nn.Conv2d(width, z_channels, out_kernel, padding=out_kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W], H and W multiples of stride -> [B, z_channels, h, w]."""
        return self.conv_out(self.out_activation(self.norm_out(self.features(x))))

    def features(self, x: Tensor) -> Tensor:
        """What enters the last norm: [B, in_channels, H, W] -> [B, channels * channel_mult[-1], h, w]."""
        x = self.conv_in(x)
        for level in self.levels:
            x = run(level, x, self.gradient_checkpointing and self.training)
        return self.mid(x)


class ConvDecoder2d(nn.Module):
    """z [B, z_channels, h, w] -> x [B, out_channels, h * stride, w * stride].

    Arguments as in `ConvEncoder2d`, `channel_mult` and `attn_levels` counted from full resolution as there;
    `levels` run from the lowest resolution to the highest. VQGAN decoders have one residual block a level more than
    their encoder.

    upsample    channels -> module that doubles h and w
    norm_first  group norm of z before everything else (BAE)
    adaptive    before every level a group norm whose scale and shift come from z (Open-MAGVIT2)
    """

    def __init__(
        self, z_channels: int, channels: int = 128, channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 3, attn_levels: tuple[int, ...] = (), mid_blocks: int = 2, mid_attention: bool = True,
        bias: bool = True, upsample: Callable[[int], nn.Module] | None = None, shortcut_on_branch: bool = False,
        groups: int = 32, out_channels: int = 3, gradient_checkpointing: bool = False, out_activation: bool = True,
        norm_first: bool = False, adaptive: bool = False,
    ) -> None:
        super().__init__()
        up = upsample if upsample is not None else NearestConv2d
        last = len(channel_mult) - 1
        check_levels(attn_levels, last)
        self.z_channels = z_channels
        self.stride = 2**last
        self.gradient_checkpointing = gradient_checkpointing
        width = channels * channel_mult[-1]
        self.norm_in: nn.Module = nn.GroupNorm(groups, z_channels, eps=1e-6) if norm_first else nn.Identity()
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = middle(width, mid_blocks, mid_attention, bias, shortcut_on_branch, groups)
        self.styles = nn.ModuleList()
        self.levels = nn.ModuleList()
        for i in reversed(range(len(channel_mult))):
            target = channels * channel_mult[i]
            resample = up(target) if i > 0 else None
            if adaptive:
                self.styles.append(AdaptiveNorm2d(width, z_channels, groups))
            self.levels.append(Level2d(
                width, target, num_res_blocks, i in attn_levels, resample, bias, shortcut_on_branch, groups
            ))
            width = target
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.out_activation: nn.Module = nn.SiLU() if out_activation else nn.Identity()
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """[B, z_channels, h, w] -> [B, out_channels, H, W], not clamped."""
        x = self.mid(self.conv_in(self.norm_in(z)))
        for i, level in enumerate(self.levels):
            if self.styles:
                x = self.styles[i](x, z)
            x = run(level, x, self.gradient_checkpointing and self.training)
        return self.conv_out(self.out_activation(self.norm_out(x)))


class Level2d(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked, then `resample` if given."""

    def __init__(
        self, in_channels: int, channels: int, num_res_blocks: int, attention: bool, resample: nn.Module | None,
        bias: bool, shortcut_on_branch: bool, groups: int,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * num_res_blocks
        self.blocks = nn.ModuleList(
            ResBlock2d(a, b, bias, shortcut_on_branch, groups) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.attentions = nn.ModuleList(Attention2d(channels, groups) for _ in range(num_res_blocks * attention))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, h, w] -> [B, channels, h', w']."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[i](x)
        return x if self.resample is None else self.resample(x)


class ResBlock2d(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (through a 1x1 `shortcut` where the width changes).

    shortcut_on_branch  MaskGIT-VQGAN: the shortcut reads the convolution branch instead of the block's input, so
                        that where the width changes nothing of the input is added
    groups              of the group norms (eps 1e-6)
    """

    def __init__(
        self, in_channels: int, channels: int, bias: bool = True, shortcut_on_branch: bool = False, groups: int = 32
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=bias)
        self.norm2 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.shortcut_on_branch = shortcut_on_branch
        self.shortcut: nn.Conv2d | None = None
        if in_channels != channels:
            self.shortcut = nn.Conv2d(channels if shortcut_on_branch else in_channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, h, w] -> [B, channels, h, w]."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        if self.shortcut is not None:
            x = self.shortcut(y if self.shortcut_on_branch else x)
        return x + y


class Attention2d(nn.Module):
    """Single-head attention over all positions of a feature map, added to its input."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        y = self.norm(x)
        q, k, v = (proj(y).flatten(2).transpose(1, 2)[:, None] for proj in (self.q, self.k, self.v))
        y = attention(q, k, v)
        return x + self.out(y[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))


class StridedConv2d(nn.Module):
    """Halves h and w: 3x3 convolution with stride 2, padded by one on the right and bottom only (taming)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h / 2, w / 2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class AveragePool2d(nn.Module):
    """Halves h and w: mean of 2x2 (MaskGIT-VQGAN)."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h / 2, w / 2]."""
        return F.avg_pool2d(x, 2)


class NearestConv2d(nn.Module):
    """Doubles h and w: nearest neighbour, then 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, 2 h, 2 w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(
    width: int, blocks: int, attention: bool, bias: bool, shortcut_on_branch: bool, groups: int
) -> nn.Sequential:
    """Residual blocks at the lowest resolution, with attention between them if asked."""
    layers: list[nn.Module] = []
    for i in range(blocks):
        if i and attention:
            layers.append(Attention2d(width, groups))
        layers.append(ResBlock2d(width, width, bias, shortcut_on_branch, groups))
    return nn.Sequential(*layers)


def run(level: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """level(x), keeping only x for the backward pass when `recompute`."""
    return checkpoint(level, x, use_reentrant=False) if recompute and x.requires_grad else level(x)


def check_levels(attn_levels: tuple[int, ...], last: int) -> None:
    """ValueError for an attention level that does not exist."""
    if any(not 0 <= level <= last for level in attn_levels):
        raise ValueError(f"attn_levels {list(attn_levels)}: this channel_mult has levels 0 to {last}")
