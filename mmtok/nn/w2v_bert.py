"""w2v-BERT 2.0 (arXiv 2312.05187): the conformer that X-Codec-2 listens with, and the filter bank before it.

Legend: B batch, T samples at 16 kHz, N filter bank frames (one per 10 ms), M bands, F frames = N / 2, E width, H heads.

Parameter names are those of transformers' Wav2Vec2BertModel, which every published file uses.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE, WINDOW, HOP, N_FFT = 16000, 400, 160, 512


class W2vBertFeatures(nn.Module):
    """x [B, 1, T], T a multiple of 320 -> hidden state [B, F, E] behind the last of `layers` layers, F = T / 320.

    Frozen, and part of what is saved with a codec. Half a frame of zeros is put on both sides. X-Codec-2 hears 16 of
    the 24 published layers. Other arguments: see `W2vBert`.
    """

    def __init__(
        self, dim: int = 1024, heads: int = 16, layers: int = 16, hidden: int = 4096, inputs: int = 160,
        left: int = 64, right: int = 8, kernel: int = 31,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.bank = FilterBank(inputs // 2)
        self.trunk = W2vBert(dim, heads, layers, hidden, inputs, left, right, kernel)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(self.bank(F.pad(x, (HOP, HOP))))


class FilterBank(nn.Module):
    """x [B, 1, T] in [-1, 1] -> [B, N / 2, 2 M]: Kaldi's log filter bank, every band with zero mean and unit variance
    over the clip, two frames joined; an odd last frame is left out."""

    def __init__(self, bands: int = 80) -> None:
        super().__init__()
        window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64).pow(0.85).float()  # "povey"
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", kaldi_filters(bands), persistent=False)

    window: Tensor
    filters: Tensor

    def forward(self, x: Tensor) -> Tensor:
        frames = (x[:, 0] * 2**15).unfold(-1, WINDOW, HOP)
        frames = frames - frames.mean(-1, keepdim=True)
        frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], -1)
        spectrum = torch.fft.rfft(frames * self.window, N_FFT)
        bank = (spectrum.real.square() + spectrum.imag.square()) @ self.filters.T
        bank = bank.clamp(min=torch.finfo(torch.float32).eps).log()
        bank = (bank - bank.mean(1, keepdim=True)) / (bank.var(1, keepdim=True, unbiased=True) + 1e-7).sqrt()
        return bank[:, : bank.shape[1] // 2 * 2].unflatten(1, (-1, 2)).flatten(2)


class W2vBert(nn.Module):
    """Filter bank [B, F, inputs] -> [B, F, E]: conformer layers, each knowing how far away a key is.

    left, right  distances beyond which all are alike
    kernel       of the causal depthwise convolutions
    """

    def __init__(
        self, dim: int, heads: int, layers: int, hidden: int, inputs: int, left: int, right: int, kernel: int
    ) -> None:
        super().__init__()
        parts = {"layer_norm": nn.LayerNorm(inputs), "projection": nn.Linear(inputs, dim)}
        self.feature_projection = nn.ModuleDict(parts)
        stack = nn.ModuleList(ConformerLayer(dim, heads, hidden, left, right, kernel) for _ in range(layers))
        self.encoder = nn.ModuleDict({"layers": stack})

    def forward(self, x: Tensor) -> Tensor:
        x = self.feature_projection["projection"](self.feature_projection["layer_norm"](x))
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            x = layer(x)
        return x


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm (arXiv 2005.08100)."""

    def __init__(self, dim: int, heads: int, hidden: int, left: int, right: int, kernel: int) -> None:
        super().__init__()
        self.ffn1_layer_norm, self.ffn2_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ffn1, self.ffn2 = _FeedForward(dim, hidden), _FeedForward(dim, hidden)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attn = DistanceAttention(dim, heads, left, right)
        self.conv_module = _Convolution(dim, kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.ffn1(self.ffn1_layer_norm(x))
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        x = x + self.conv_module(x)
        return self.final_layer_norm(x + 0.5 * self.ffn2(self.ffn2_layer_norm(x)))


class DistanceAttention(nn.Module):
    """Attention whose logits also hold q . e(distance), the distance clipped to [-left, right] (arXiv 1803.02155)."""

    def __init__(self, dim: int, heads: int, left: int, right: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"w2v-BERT: width {dim} is not divisible by {heads} heads")
        self.heads, self.left, self.right = heads, left, right
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (nn.Linear(dim, dim) for _ in range(4))
        self.distance_embedding = nn.Embedding(left + right + 1, dim // heads)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.linear_q, self.linear_k, self.linear_v)
        )
        at = torch.arange(x.shape[1], device=x.device)
        distance = (at - at[:, None]).clamp(-self.left, self.right) + self.left
        # logits of the few distances there are, then each pair takes its own
        logits = (q @ self.distance_embedding.weight.T) / math.sqrt(q.shape[-1])
        bias = logits.gather(-1, distance.expand(*q.shape[:2], -1, -1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.linear_out(y.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.intermediate_dense, self.output_dense = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(F.silu(self.intermediate_dense(x)))


class _Convolution(nn.Module):
    """Gate, causal depthwise convolution, norm, SiLU, linear; no biases."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.layer_norm, self.depthwise_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.pointwise_conv1 = nn.Conv1d(dim, 2 * dim, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel, groups=dim, bias=False)
        self.pointwise_conv2 = nn.Conv1d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.pointwise_conv1(self.layer_norm(x).transpose(1, 2)), dim=1)
        y = self.depthwise_conv(F.pad(y, (self.depthwise_conv.kernel_size[0] - 1, 0)))
        y = F.silu(self.depthwise_layer_norm(y.transpose(1, 2))).transpose(1, 2)
        return self.pointwise_conv2(y).transpose(1, 2)


def kaldi_filters(bands: int, low: float = 20.0, high: float = RATE / 2) -> Tensor:
    """float32 [M, 257]: triangles with straight sides on the mel scale, as Kaldi draws them; the last bin counts 0."""

    def mel(hz: Tensor) -> Tensor:
        return 1127 * (1 + hz / 700).log()

    ends = mel(torch.tensor([low, high], dtype=torch.float64))
    step = (ends[1] - ends[0]) / (bands + 1)
    left = (ends[0] + step * torch.arange(bands, dtype=torch.float64))[:, None]
    bins = mel(torch.arange(N_FFT // 2, dtype=torch.float64) * RATE / N_FFT)
    rising, falling = (bins - left) / step, (left + 2 * step - bins) / step
    return F.pad(torch.minimum(rising, falling).clamp(min=0), (0, 1)).float()
