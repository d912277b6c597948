"""wav2vec 2.0 base trunk (arXiv 2006.11477), frozen: strided convolutions, then a post-norm transformer.

Legend: B batch, T samples at 16 kHz, C convolution channels, F frames (one per 20 ms), D width, H heads.

Parameter names are fairseq's, which every published file of this network uses; the weight-normed position convolution
is held as a plain weight (`fold_position_conv` makes it).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (5, 2, 2, 2, 2, 2, 2)


class Wav2Vec2(nn.Module):
    """wave [B, T] in [-1, 1] -> features [B, F, D] of the last layer. Sizes default to the base model.

    dim, heads, layers, ffn  transformer
    conv_dim, kernels        the convolutions, strides 5, 2, 2, ...: one frame per 320 samples with all seven, fewer
                             convolutions give more frames
    pos_kernel, pos_groups   the convolution that tells positions

    No input normalisation and no padding mask: the group norm over time and attention see padding, so clips of
    different lengths are given one at a time.
    """

    def __init__(
        self, dim: int = 768, heads: int = 12, layers: int = 12, ffn: int = 3072, conv_dim: int = 512,
        kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2), pos_kernel: int = 128, pos_groups: int = 16,
    ) -> None:
        super().__init__()
        if not 1 <= len(kernels) <= len(STRIDES):
            raise ValueError(f"wav2vec2.kernels: 1 to {len(STRIDES)} convolutions, got {len(kernels)}")
        self.kernels = tuple(kernels)
        self.hop = math.prod(STRIDES[: len(kernels)])
        self.feature_extractor = _Convolutions(conv_dim, self.kernels)
        self.layer_norm = nn.LayerNorm(conv_dim)
        self.post_extract_proj = nn.Linear(conv_dim, dim)
        self.encoder = _Encoder(dim, heads, layers, ffn, pos_kernel, pos_groups)

    @property
    def shortest(self) -> int:
        """Samples that give one frame."""
        field = 1
        for kernel, stride in reversed(list(zip(self.kernels, STRIDES, strict=False))):
            field = (field - 1) * stride + kernel
        return field

    def forward(self, wave: Tensor) -> Tensor:
        return self.states(wave)[-1]

    def states(self, wave: Tensor) -> list[Tensor]:
        """What goes into the first layer, and what comes out of every layer: 1 + layers times [B, F, D]."""
        if wave.dim() != 2 or wave.shape[1] < self.shortest:
            raise ValueError(f"wav2vec2: expected [B, at least {self.shortest} samples], got {list(wave.shape)}")
        features = self.feature_extractor(wave[:, None]).transpose(1, 2)
        return self.encoder.states(self.post_extract_proj(self.layer_norm(features)))


class _Convolutions(nn.Module):
    """[B, 1, T] -> [B, C, F]; no biases, and a norm per channel over time after the first layer alone."""

    def __init__(self, dim: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        layers = []
        for i, (kernel, stride) in enumerate(zip(kernels, STRIDES, strict=False)):
            conv = nn.Conv1d(dim if i else 1, dim, kernel, stride, bias=False)
            norm = [] if i else [nn.GroupNorm(dim, dim)]
            layers.append(nn.Sequential(conv, nn.Identity(), *norm, nn.GELU()))  # the identity keeps published names
        self.conv_layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.conv_layers:
            x = layer(x)
        return x


class _Encoder(nn.Module):
    def __init__(self, dim: int, heads: int, layers: int, ffn: int, pos_kernel: int, pos_groups: int) -> None:
        super().__init__()
        self.pos_conv = nn.Sequential(nn.Conv1d(dim, dim, pos_kernel, padding=pos_kernel // 2, groups=pos_groups))
        self.layer_norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(_Layer(dim, heads, ffn) for _ in range(layers))

    def states(self, x: Tensor) -> list[Tensor]:
        # an even kernel padded by half of it gives one frame too many
        position = F.gelu(self.pos_conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        out = [self.layer_norm(x + position)]
        for layer in self.layers:
            out.append(layer(out[-1]))
        return out


class _Layer(nn.Module):
    """Post-norm: attention, add, norm, feed forward, add, norm."""

    def __init__(self, dim: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = _Attention(dim, heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, ffn), nn.Linear(ffn, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"wav2vec2: width {dim} is not divisible by {heads} heads")
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def fold_position_conv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same state with the position convolution's gain [1, 1, k] and direction made into one weight.

    Accepts `weight_g`, `weight_v` (fairseq) and `parametrizations.weight.original0`, `original1` (PyTorch).
    """
    out = dict(state)
    for gain, direction in (("weight_g", "weight_v"), ("parametrizations.weight.original0",
                                                       "parametrizations.weight.original1")):
        for key in [key for key in state if key.endswith(f"pos_conv.0.{gain}")]:
            prefix = key.removesuffix(gain)
            g, v = out.pop(key), out.pop(prefix + direction)
            out[prefix + "weight"] = g * v / torch.linalg.vector_norm(v, dim=(0, 1), keepdim=True)
    return out
