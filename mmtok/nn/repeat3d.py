"""Causal convolutions over video whose frames or pixels stand twice, as networks that grow a video use them.

Legend: B batch, C channels, O out channels, T frames, H W pixels.

Of three weights over neighbours that are equal in pairs, two meet the same value. Added up beforehand they leave a
kernel of two for each of the two outputs: 2/3 of the products in time, 4/9 in space. `fold` does so for frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.conv3d import CausalConv3d, PadMode, Triple, convolve, extend
from mmtok.nn.stream import Stream

# [output of two, weight of two, weight of three]; in time the kernel ends at the output, in space it is around it
IN_TIME = (((1, 1, 0), (0, 0, 1)), ((1, 0, 0), (0, 1, 1)))
IN_SPACE = IN_TIME[::-1]


class RepeatConv3d(CausalConv3d):
    """x [B, C, T, H, W], every frame `time` times and every pixel `space` x `space` times -> convolution, stride 1.

    time, space  1 or 2, one of them 2; the kernel is 3 along what is doubled. Others as in `CausalConv3d`
    """

    def __init__(
        self, channels: int, kernel: Triple, time: int = 1, space: int = 1, pad_mode: PadMode = "first_frame"
    ) -> None:
        super().__init__(channels, channels, kernel, pad_mode=pad_mode)
        doubled = kernel[:1] if time == 2 else kernel[1:]
        if (time, space) not in ((2, 1), (1, 2)) or set(doubled) != {3}:
            raise ValueError(f"conv3d: time {time} and space {space} double one of them, under kernels of three")
        self.time = time
        self._folded: tuple[nn.Conv3d] | None = None  # a tuple hides it from parameters and state_dict

    def fold(self, prepare: Callable[[nn.Conv3d], nn.Conv3d]) -> None:
        """From now on, without gradients, kernels of two: made of the weights as they are, then `prepare`d."""
        weight, bias = self.conv.weight.detach(), self.conv.bias
        if self.time == 2:
            w = torch.einsum("pij,ocjhw->pocihw", torch.tensor(IN_TIME).double(), weight.double()).flatten(0, 1)
        else:
            mix = torch.tensor(IN_SPACE).double()
            w = torch.einsum("pij,qkl,octjl->pqoctik", mix, mix, weight.double()).flatten(0, 2)
        pad = self.conv.padding if self.time == 2 else (0, 1, 1)
        conv = nn.Conv3d(w.shape[1], w.shape[0], w.shape[2:], padding=pad, bias=bias is not None, device="meta")  # type: ignore[arg-type]
        conv.weight = nn.Parameter(w.to(weight.dtype), requires_grad=False)
        if bias is not None:
            conv.bias = nn.Parameter(bias.detach().repeat(len(w) // len(weight)), requires_grad=False)
        self._folded = (prepare(conv),)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole video, or its next frames: [B, C, T time, H space, W space]."""
        if self._folded is None or (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(repeat_time(x) if self.time == 2 else repeat_space(x), stream)
        if self.time == 1:
            return _weave(convolve(x, self._folded[0], stream), self.conv.out_channels)
        x = extend(self, x, 1, 1, 1, self.pad_mode, stream)
        if not x.shape[2]:
            return x
        y = convolve(x, self._folded[0], stream).unflatten(1, (2, -1))
        return y.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def repeat_time(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, C, 2 T, H, W], channels last in memory."""
    return x.movedim(1, -1).repeat_interleave(2, 1).movedim(-1, 1)


def repeat_space(x: Tensor) -> Tensor:
    """Every pixel as a 2 x 2 square: [B, C, T, H, W] -> [B, C, T, 2 H, 2 W]."""
    frames = F.interpolate(x.transpose(1, 2).flatten(0, 1), scale_factor=2.0, mode="nearest")
    return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def _weave(y: Tensor, channels: int) -> Tensor:
    """[B, 4 O, T, H + 1, W + 1], for odd and even rows and columns -> [B, O, T, 2 H, 2 W]."""
    batch, _, frames, high, wide = y.shape
    high, wide = high - 1, wide - 1
    out = y.new_empty(batch, frames, 2 * high, 2 * wide, channels)
    parts = y.unflatten(1, (2, 2, channels)).permute(1, 2, 0, 4, 5, 6, 3)
    for p in range(2):
        for q in range(2):
            out[:, :, p::2, q::2] = parts[p, q, :, :, p : p + high, q : q + wide]
    return out.permute(0, 4, 1, 2, 3)
