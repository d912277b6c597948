"""SEANet: the convolutional encoder and decoder of EnCodec, SpeechTokenizer, WavTokenizer and Mimi.

Legend: B batch, C audio channels, T samples, D latent channels, F frames = ceil(T / stride).

Sources: arXiv 2009.02095, 2210.13438. `layers` is flat and counts as published checkpoints do: convolution, then per
stage residual blocks, activation, resampling convolution; LSTM; activation; convolution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmtok.nn.conv1d import Norm, PadMode, SameConv1d, SameConvTranspose1d
from mmtok.nn.elu import ELU
from mmtok.nn.snake import Snake
from mmtok.nn.stream import Causal, Stream, add_aligned, run, run_in_pieces


class SEANetEncoder(Causal):
    """x [B, C, T] -> z [B, D, F]. Widths double from n_filters at every stage.

    channels         C
    dim              D
    ratios           strides in the decoder's order, as everybody publishes them: the encoder applies them reversed
    n_residual       residual blocks a stage, dilation dilation_base ** i
    compress         a residual block is this much narrower inside
    lstm             LSTM layers behind the last stage, 0 for none
    bidirectional    of that LSTM; the last convolution then sees twice the channels
    conv_shortcut    1x1 convolution around residual blocks, not the identity
    snake            Snake in place of ELU
    causal, pad_mode, norm: see `SameConv1d`
    """

    def __init__(
        self, channels: int = 1, dim: int = 128, n_filters: int = 32, ratios: list[int] | None = None,
        n_residual: int = 1, kernel: int = 7, last_kernel: int = 7, residual_kernel: int = 3, dilation_base: int = 2,
        compress: int = 2, lstm: int = 2, bidirectional: bool = False, conv_shortcut: bool = True, snake: bool = False,
        causal: bool = True, pad_mode: PadMode = "reflect", norm: Norm = "weight_norm",
    ) -> None:
        super().__init__()
        ratios = [8, 5, 4, 2] if ratios is None else ratios
        self.stride = math.prod(ratios)
        self.dim = dim
        self.channels = channels
        self.causal = causal and not bidirectional and norm != "time_group_norm"

        def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> SameConv1d:
            return SameConv1d(inputs, outputs, size, stride, causal=causal, pad_mode=pad_mode, norm=norm)

        width, rate = n_filters, 1.0
        layers: list[nn.Module] = [conv(channels, width, kernel)]
        self.widths = [float(width)]
        for ratio in reversed(ratios):
            self.widths += [width * rate] * (n_residual + 2)
            rate /= ratio
            layers += [
                ResidualBlock(
                    width, residual_kernel, dilation_base**i, compress, conv_shortcut, snake, causal, pad_mode, norm
                )
                for i in range(n_residual)
            ]
            layers += [_activation(snake, width), conv(width, 2 * width, 2 * ratio, ratio)]
            width *= 2
        if lstm:
            layers.append(ResidualLSTM(width, lstm, bidirectional))
            width *= 2 if bidirectional else 1
        layers += [_activation(snake, width), conv(width, dim, last_kernel)]
        self.layers = nn.ModuleList(layers)
        self.widths += [width * rate] * (len(layers) - len(self.widths))

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T] -> [B, D, F]."""
        if stream is None and self.causal:
            return run_in_pieces(list(self.layers), x, self.widths)
        return run(self.layers, x, stream)


class SEANetDecoder(Causal):
    """z [B, D, F] -> x [B, C, F * stride]: the encoder's mirror, residual blocks behind each transposed convolution."""

    def __init__(
        self, channels: int = 1, dim: int = 128, n_filters: int = 32, ratios: list[int] | None = None,
        n_residual: int = 1, kernel: int = 7, last_kernel: int = 7, residual_kernel: int = 3, dilation_base: int = 2,
        compress: int = 2, lstm: int = 2, conv_shortcut: bool = True, snake: bool = False, causal: bool = True,
        pad_mode: PadMode = "reflect", norm: Norm = "weight_norm", trim_right_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        ratios = [8, 5, 4, 2] if ratios is None else ratios
        self.stride = math.prod(ratios)
        self.dim = dim
        self.channels = channels
        self.causal = causal and norm != "time_group_norm" and trim_right_ratio == 1
        width = n_filters * 2 ** len(ratios)
        layers: list[nn.Module] = [SameConv1d(dim, width, kernel, causal=causal, pad_mode=pad_mode, norm=norm)]
        if lstm:
            layers.append(ResidualLSTM(width, lstm))
        self.widths, rate = [float(width)] * len(layers), 1.0
        for ratio in ratios:
            self.widths.append(width * rate)
            rate *= ratio
            up = SameConvTranspose1d(
                width, width // 2, 2 * ratio, ratio, causal=causal, trim_right_ratio=trim_right_ratio, norm=norm
            )
            layers += [_activation(snake, width), up]
            width //= 2
            self.widths += [width * rate] * (1 + n_residual)
            layers += [
                ResidualBlock(
                    width, residual_kernel, dilation_base**i, compress, conv_shortcut, snake, causal, pad_mode, norm
                )
                for i in range(n_residual)
            ]
        last = SameConv1d(width, channels, last_kernel, causal=causal, pad_mode=pad_mode, norm=norm)
        self.layers = nn.ModuleList([*layers, _activation(snake, width), last])
        self.widths += [width * rate] * 2

    def forward(self, z: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, D, F] -> [B, C, F * stride]."""
        if stream is None and self.causal:
            return run_in_pieces(list(self.layers), z, self.widths)
        return run(self.layers, z, stream)


class ResidualBlock(Causal):
    """x + conv1(act(conv_k(act(x)))), the shortcut a 1x1 convolution or the identity."""

    def __init__(
        self, width: int, kernel: int, dilation: int, compress: int, conv_shortcut: bool, snake: bool, causal: bool,
        pad_mode: PadMode, norm: Norm,
    ) -> None:
        super().__init__()
        hidden = width // compress
        self.block = nn.ModuleList([
            _activation(snake, width),
            SameConv1d(width, hidden, kernel, dilation=dilation, causal=causal, pad_mode=pad_mode, norm=norm),
            _activation(snake, hidden),
            SameConv1d(hidden, width, 1, causal=causal, pad_mode=pad_mode, norm=norm),
        ])
        self.shortcut = (
            SameConv1d(width, width, 1, causal=causal, pad_mode=pad_mode, norm=norm) if conv_shortcut else nn.Identity()
        )

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, width, T] -> [B, width, T]."""
        return add_aligned(self, run([self.shortcut], x, stream), run(self.block, x, stream), stream)


class ResidualLSTM(Causal):
    """x + LSTM(x) over time; with two directions x is added to each half of the output [B, 2 * width, T]."""

    def __init__(self, width: int, layers: int, bidirectional: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers, bidirectional=bidirectional)
        self.copies = 2 if bidirectional else 1

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, width, T] -> [B, width or 2 * width, T]."""
        if stream is None:
            y, _ = self.lstm(x.permute(2, 0, 1))
        elif x.shape[-1]:
            y, stream.memory[self] = self.lstm(x.permute(2, 0, 1), stream.memory.get(self))
        else:
            return x
        return torch.cat([x] * self.copies, 1) + y.permute(1, 2, 0)


def _activation(snake: bool, width: int) -> nn.Module:
    return Snake(width) if snake else ELU()
