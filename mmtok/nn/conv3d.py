"""Causal convolutions over video, whole or in pieces.

Legend: B batch, C channels, T frames, H W pixels, k kernel, s stride, d dilation in time.

Time is padded in front only, space on both sides. Frame t of the output sees frames up to s * t of the input when the
first frame stands alone (T = 1 + s n), up to s * t + s - 1 when it does not (T = s n).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.layout import channels_last, settled
from mmtok.nn.packed import Plane, as_plane, kept, packable
from mmtok.nn.stream import Causal, Stream, run
from mmtok.nn.winograd import WinogradConv3d

PadMode = Literal["first_frame", "zeros"]
Triple = tuple[int, int, int]
SMALL = 20480  # B C T H up to which torch convolves in 3D by its reference implementation on a CPU, for one item


class CausalConv3d(Causal):
    """x [B, in, T, H, W] -> [B, out, T', H / s, W / s].

    kernel, stride  over (T, H, W); in space k - s zeros are added, the larger half behind
    dilation        d, in time
    pad_mode        what stands before the first frame: copies of it ("first_frame": Cosmos, VidTok v1.1, CogVideoX) or
                    "zeros" (VidTok v1.0, MAGVIT-v2)
    first_alone     with a stride in time: the first output sees the first frame only, T' = 1 + (T - 1) // s;
                    otherwise T' = T // s
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Triple = (3, 3, 3), stride: Triple = (1, 1, 1),
        dilation: int = 1, bias: bool = True, pad_mode: PadMode = "first_frame", first_alone: bool = False,
    ) -> None:
        super().__init__()
        total = [k - s for k, s in zip(kernel[1:], stride[1:], strict=True)]
        self.context = (kernel[0] - 1) * dilation + 1 - stride[0]
        if min(self.context, *total) < 0:
            raise ValueError(f"conv3d: kernel {list(kernel)} must not be smaller than stride {list(stride)}")
        halves = [n // 2 for n in total]
        # even padding costs nothing inside the convolution
        self.sides = None if all(n % 2 == 0 for n in total) else [
            halves[1], total[1] - halves[1], halves[0], total[0] - halves[0], 0, 0
        ]  # fmt: skip
        inside = (0, halves[0], halves[1]) if self.sides is None else (0, 0, 0)
        self.conv = nn.Conv3d(
            in_channels, out_channels, kernel, stride, inside, (dilation, 1, 1), bias=bias
        )
        self.first = self.context + (stride[0] - 1 if first_alone else 0)
        self.pad_mode: PadMode = pad_mode

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole video, or its next frames."""
        x = settled(x)
        if self.first or self.conv.stride[0] > 1:
            x = extend(self, x, self.first, self.context, self.conv.stride[0], self.pad_mode, stream)
        if not x.shape[2]:
            return empty_like(x, self.conv)
        return self.apply_kernel(x, stream)

    def apply_kernel(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """The convolution alone: what stands before x in time has been added already."""
        if self.sides is not None:
            x = F.pad(settled(x), self.sides)
        return convolve(x, self.conv, stream)


class PointConv3d(nn.Conv3d):
    """1x1x1 convolution, [B, in, T, H, W] -> [B, out, T, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self)


class PackedConv3d(nn.Conv3d):
    """A frozen kernel over space or time alone whose weights stay laid out; [B, in, T, H, W] -> [B, out, T, H, W].

    Where gradients are asked for, it is the plain convolution.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            bias=conv.bias is not None, device="meta",
        )  # fmt: skip
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self)


class FactorisedConv3d(Causal):
    """A convolution over space, 1 x k x k, then one over time, k x 1 x 1 (Cosmos)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, bias: bool = True, pad_mode: PadMode = "first_frame"
    ) -> None:
        super().__init__()
        self.space = CausalConv3d(in_channels, out_channels, (1, kernel, kernel), bias=bias)
        self.time = CausalConv3d(out_channels, out_channels, (kernel, 1, 1), bias=bias, pad_mode=pad_mode)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, in, T, H, W] -> [B, out, T, H, W]."""
        return self.time(self.space(x, stream), stream)


class FrontFrames(Causal):
    """Puts `count` copies of the first frame before it; later pieces pass."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, count + T, H, W]."""
        if not self.count or not x.shape[2] or not _begins(self, stream):
            return x
        return torch.cat([x[:, :, :1]] * self.count + [x], 2)


class DropFront(Causal):
    """Drops the first `count` frames of a video; later pieces pass."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T - count, H, W]."""
        if stream is None:
            return x[:, :, self.count :]
        left = stream.memory.get(self, self.count)
        stream.memory[self] = max(0, left - x.shape[2])
        return x[:, :, left:]


class Chain(Causal):
    """Modules one after the other; those that look back get the stream."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T', H', W']."""
        return run(self.layers, x, stream)


def convolve(x: Tensor, conv: nn.Conv3d, stream: Stream | None = None) -> Tensor:
    """conv(x) for x [B, C, T, H, W]; kernels over space or time alone run as 2D convolutions.

    In channels-last memory these are views, and torch has fast 2D kernels for many shapes whose 3D kernels are slow:
    on a CPU it takes its reference implementation for short clips and for 1x1 kernels.

    stream  where x is a piece: weights are then laid out once for all pieces
    """
    if isinstance(conv, WinogradConv3d) and not (torch.is_grad_enabled() and x.requires_grad):
        return conv.run(x)
    plane = as_plane(conv)
    if plane is not None:
        if conv.kernel_size[0] == 1 and conv.stride[0] == 1:
            y = _on_plane(settled(x.transpose(1, 2).flatten(0, 1)), conv, plane, stream)
            return settled(y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2))
        y = _on_plane(settled(x.flatten(3)), conv, plane, stream)
        return settled(y.unflatten(3, x.shape[3:]))
    # whatever T is, so that chunks have the sums of the whole; as few frames as the kernel may arrive at once
    if x.is_cpu and x.shape[0] == 1 and x.shape[1] * conv.kernel_size[0] * x.shape[3] <= SMALL:
        return _by_slices(x, conv)
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def _on_plane(x: Tensor, conv: nn.Conv3d, plane: Plane, stream: Stream | None) -> Tensor:
    """The 2D convolution `plane` that conv is. For inference on a CPU always oneDNN's: torch goes by the size of x, so
    that a piece would have other sums than the whole."""
    weight, stride, padding, dilation = plane
    cast = x.dtype == torch.float32 and torch.is_autocast_enabled("cpu")
    if (
        torch.is_grad_enabled() or torch.compiler.is_compiling() or cast or not x.is_cpu
        or x.dtype != weight.dtype or x.dtype not in packable()
    ):  # fmt: skip
        return F.conv2d(x, weight, conv.bias, stride, padding, dilation)
    x = channels_last(x)  # sums of the other layout differ
    if (stream is not None or isinstance(conv, PackedConv3d)) and not weight.is_inference():
        return kept(conv, plane, x)
    return torch.mkldnn_convolution(x, weight, conv.bias, padding, stride, dilation, 1)


def _by_slices(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """conv(x) as a sum over its time slices, each a 2D convolution."""
    assert not isinstance(conv.padding, str)
    k, s, d = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
    stride, pad = conv.stride[1:], conv.padding[1:]
    last = (x.shape[2] - (k - 1) * d - 1) // s * s
    y: Tensor | None = None
    for i in range(k):
        frames = x[:, :, i * d : i * d + last + 1 : s].transpose(1, 2).flatten(0, 1)
        part = F.conv2d(frames, conv.weight[:, :, i], conv.bias if i == 0 else None, stride, pad)
        y = part if y is None else y + part
    assert y is not None
    return y.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def extend(
    owner: nn.Module, x: Tensor, first: int, context: int, stride: int, pad_mode: PadMode, stream: Stream | None
) -> Tensor:
    """x [B, C, T, H, W] with what stands before it: `first` padding frames, or what `stream` holds of earlier pieces.

    Cut to whole strides: the rest, and `context` frames before it, wait in the stream for the next piece.
    """
    held = None if stream is None else stream.memory.get(owner)
    if held is not None:
        x = torch.cat([held, x], 2)
    elif first and x.shape[2]:
        front = torch.zeros_like(x[:, :, :1]) if pad_mode == "zeros" else x[:, :, :1]
        x = torch.cat([front] * first + [x], 2)  # an expanded view would cost the memory layout
    used = max(0, (x.shape[2] - context) // stride) * stride
    if stream is not None and x.shape[2]:
        # a copy: a view would keep the whole piece alive
        stream.memory[owner] = x[:, :, used:].clone()
    return x[:, :, : used + context] if used else x[:, :, :0]


def empty_like(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """What `conv` makes of no frames."""
    height, width = (-(-n // s) for n, s in zip(x.shape[3:], conv.stride[1:], strict=True))
    return x.new_zeros(x.shape[0], conv.out_channels, 0, height, width)


def _begins(owner: nn.Module, stream: Stream | None) -> bool:
    """Whether this is the first piece that `owner` sees."""
    if stream is None:
        return True
    begun = bool(stream.memory.get(owner, False))
    stream.memory[owner] = True
    return not begun
