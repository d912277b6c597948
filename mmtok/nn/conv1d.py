"""1D convolutions that keep time on a grid: ceil(T / stride) frames down, T * stride samples up.

Legend: B batch, C channels, T time, K effective kernel.

Padding is that of EnCodec (arXiv 2210.13438): K - stride in all, to the left when causal, otherwise split with the
larger half left, plus what the last window needs on the right.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.stream import Causal, Stream, join
from mmtok.nn.weight_norm import weight_norm

Norm = Literal["weight_norm", "time_group_norm", "none"]
PadMode = Literal["reflect", "constant", "replicate"]


class SameConv1d(Causal):
    """x [B, in, T] -> [B, out, ceil(T / stride)].

    causal    a frame sees no sample behind its own stride: the module can stream
    pad_mode  "reflect" (a signal shorter than the padding is extended by zeros first), "constant" (zeros), "replicate"
    norm      "weight_norm"; "time_group_norm": one group over channels and time, which forbids streaming; "none"
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1,
        bias: bool = True, causal: bool = False, pad_mode: PadMode = "reflect", norm: Norm = "weight_norm",
    ) -> None:
        super().__init__()
        self.total = (kernel - 1) * dilation + 1 - stride
        if self.total < 0:
            raise ValueError(f"conv1d: kernel {kernel} must not be smaller than stride {stride}")
        conv = nn.Conv1d(in_channels, out_channels, kernel, stride, dilation=dilation, groups=groups, bias=bias)
        self.conv, self.norm = _normed(conv, out_channels, norm)
        self.out_channels = out_channels
        self.stride = stride
        self.causal = causal
        self.pad_mode = pad_mode
        self.left = self.total if causal else self.total - self.total // 2

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole signal, or the next piece of one."""
        if stream is not None:
            return self._piece(x, stream)
        extra = -x.shape[-1] % self.stride
        return self.norm(self.conv(self._pad(x, self.left, self.total - self.left + extra)))

    @property
    def warmup(self) -> int:
        """Samples that must have arrived before the left padding is known."""
        return {"reflect": self.left + 1 if self.left else 0, "constant": 0, "replicate": 1}[self.pad_mode]

    def _piece(self, x: Tensor, stream: Stream) -> Tensor:
        _check_streams(self)
        held, started = stream.memory.get(self, (x[..., :0], False))
        x = join(held, x)
        if not started and stream.last and x.shape[-1]:
            stream.memory[self] = (x[..., :0], True)
            return self(x)
        if not started and x.shape[-1] < max(self.warmup, 1):
            stream.memory[self] = (x, False)
            return x.new_zeros(x.shape[0], self.out_channels, 0)
        if not started:
            x = self._pad(x, self.left, 0)
        if stream.last:
            x = self._pad(x, 0, -(x.shape[-1] - self.left) % self.stride)
        frames = (x.shape[-1] - self.left) // self.stride
        stream.memory[self] = (x[..., frames * self.stride :].clone(), True)  # a view would keep all of x
        if not frames:
            return x.new_zeros(x.shape[0], self.out_channels, 0)
        return self.conv(x[..., : self.left + frames * self.stride])

    def _pad(self, x: Tensor, left: int, right: int) -> Tensor:
        if not left and not right:
            return x
        short = max(left, right) - x.shape[-1] + 1
        if self.pad_mode == "reflect" and short > 0:
            # zeros first, so that there is something to reflect; they are cut off again
            padded = F.pad(F.pad(x, (0, short)), (left, right), mode="reflect")
            return padded[..., : padded.shape[-1] - short]
        # torch fills all of the result with zeros first; its own padding is for graphs
        if self.pad_mode == "constant" and not torch.compiler.is_compiling():
            ends = x.new_zeros(*x.shape[:2], max(left, right))
            return join(ends[..., :left], x, ends[..., :right])
        if not x.is_contiguous():  # channels last (mmtok.optimize): padding over two axes keeps that layout
            return F.pad(x[:, :, None], (left, right, 0, 0), mode=self.pad_mode)[:, :, 0]
        return F.pad(x, (left, right), mode=self.pad_mode)


class SameConvTranspose1d(Causal):
    """x [B, in, T] -> [B, out, T * stride]; the kernel - stride samples too many are trimmed.

    causal            trims mostly on the right: a sample sees no later frame
    trim_right_ratio  share of a causal module's trim that is cut on the right; only 1 streams
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1, bias: bool = True,
        causal: bool = False, trim_right_ratio: float = 1.0, norm: Norm = "weight_norm",
    ) -> None:
        super().__init__()
        total = kernel - stride
        if total < 0:
            raise ValueError(f"conv1d: kernel {kernel} must not be smaller than stride {stride}")
        conv = nn.ConvTranspose1d(in_channels, out_channels, kernel, stride, groups=groups, bias=bias)
        self.conv, self.norm = _normed(conv, out_channels, norm)
        self.out_channels = out_channels
        self.stride = stride
        self.causal = causal
        right = math.ceil(total * trim_right_ratio) if causal else total // 2
        self.trim = (total - right, right)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole signal, or the next piece of one."""
        if stream is not None:
            return self._piece(x, stream)
        y = self.norm(self.conv(x))  # the norm sees the samples that are trimmed, as published
        return y[..., self.trim[0] : y.shape[-1] - self.trim[1]]

    def _piece(self, x: Tensor, stream: Stream) -> Tensor:
        _check_streams(self)
        if self.trim[0]:
            raise ValueError("trim_right_ratio: only 1 can stream")
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.out_channels, 0)
        y = self.conv(x)
        held = stream.memory.get(self)
        if held is not None:
            y[..., : held.shape[-1]] += held  # fresh from the convolution, which does not need it again
        ready = x.shape[-1] * self.stride
        rest = y[..., ready:]
        if isinstance(bias := self.conv.bias, Tensor):
            rest = rest - bias[:, None]  # it is added again with the next piece
        stream.memory[self] = rest.clone()
        return y[..., :ready]


class TimeGroupNorm(nn.GroupNorm):
    """Groups of channels, normalized over time too; of a single value as well, which torch's module refuses."""

    def __init__(self, channels: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__(groups, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def _normed(conv: nn.Module, channels: int, norm: Norm) -> tuple[nn.Module, nn.Module]:
    if norm == "weight_norm":
        return weight_norm(conv), nn.Identity()
    return conv, TimeGroupNorm(channels) if norm == "time_group_norm" else nn.Identity()


def _check_streams(module: SameConv1d | SameConvTranspose1d) -> None:
    if not module.causal or isinstance(module.norm, TimeGroupNorm):
        raise ValueError("this network looks ahead in time (causal: false or a norm over time): it cannot stream")
