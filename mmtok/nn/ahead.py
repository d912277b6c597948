"""Convolutions that look both ways, over a whole signal or piece by piece: what comes out waits for what it needs.

Legend: B batch, C channels, T time, p padding, s stride, K effective kernel.

They are torch's modules, with zeros around the whole signal and a `Stream` for pieces of one. A stream of pieces gives
the values of the whole, later than a causal convolution would: it is for working through a long signal with little
memory (`run_in_pieces`), not for live use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.stream import Causal, Stream, join


class AheadConv1d(nn.Conv1d, Causal):
    """x [B, in, T] -> [B, out, (T + 2p - K) // s + 1]. In pieces only with s at most K."""

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole signal, or the next piece of one."""
        if stream is None:
            return super().forward(x)

        def conv(y: Tensor) -> Tensor:
            return F.conv1d(y, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

        reach = (self.kernel_size[0] - 1) * self.dilation[0] + 1
        return conv_piece(self, conv, x, stream, int(self.padding[0]), self.stride[0], reach, self.out_channels)


class AheadConvTranspose1d(nn.ConvTranspose1d, Causal):
    """x [B, in, T] -> [B, out, (T - 1) s - 2p + K + output_padding]."""

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:  # type: ignore[override]
        """A whole signal, or the next piece of one."""
        if stream is None:
            return super().forward(x)
        (step,), (more,), start = self.stride, self.output_padding, int(self.padding[0])
        assert more <= start, "a stream cannot give samples behind the last kernel"
        held, skip = stream.memory.get(self, (None, start))
        ready = x.shape[-1] * step
        if x.shape[-1]:
            y = F.conv_transpose1d(x, self.weight, self.bias, self.stride, 0, 0, self.groups)
            if held is not None:
                y[..., : held.shape[-1]] += held
        else:
            y = x.new_zeros(len(x), self.out_channels, 0) if held is None else self._biased(held, 1)
        if stream.last:
            return y[..., skip : y.shape[-1] - start + more]
        rest = self._biased(y[..., ready:], -1) if x.shape[-1] else held
        stream.memory[self] = (rest, max(0, skip - ready))
        return y[..., skip : max(skip, ready)]

    def _biased(self, y: Tensor, sign: int) -> Tensor:
        """What is held is without the bias, which comes with the next piece."""
        return y.clone() if self.bias is None else y + sign * self.bias[:, None]


def conv_piece(
    owner: object, conv: Callable[[Tensor], Tensor], x: Tensor, stream: Stream, padding: int, stride: int,
    reach: int, channels: int,
) -> Tensor:
    """The next piece of a convolution of effective kernel `reach`, padded by zeros around the whole signal; `conv`
    convolves without padding, `channels` are those it gives."""
    held = stream.memory.get(owner)
    x = join(x.new_zeros(*x.shape[:2], padding) if held is None else held, x)
    if stream.last:
        x = join(x, x.new_zeros(*x.shape[:2], padding))
    steps = max(0, (x.shape[-1] - reach) // stride + 1)
    stream.memory[owner] = x[..., steps * stride :].clone()  # a view would keep all of x
    if not steps:
        return x.new_zeros(len(x), channels, 0)
    return conv(x[..., : (steps - 1) * stride + reach])
