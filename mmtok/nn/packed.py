"""2D convolutions whose weights stand in the order of oneDNN beforehand.

Legend: N planes, C channels in, O out, H W pixels, kh kw kernel.

oneDNN lays out the weights of a convolution on every call. For one small plane that takes a quarter of the time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


def packable() -> tuple[torch.dtype, ...]:
    """Types in which oneDNN convolves on this CPU; none where it is missing or switched off."""
    return _types() if torch.backends.mkldnn.enabled else ()


@functools.cache
def _types() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available():
        return ()
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if half else (torch.float32,)


class Packed2d:
    """One frozen convolution, float32 or bfloat16; no module and no buffer, so never saved.

    weight [O, C, kh, kw], of the type that is computed in; bias [O] or None
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
        dilation: Sequence[int] = (1, 1),
    ) -> None:
        self.dtype = weight.dtype
        self.sizes = [list(padding), list(stride), list(dilation)]
        self.loose = weight.detach()
        self.bias = None if bias is None else bias.detach().to(weight.dtype)

    def pack(self, size: Sequence[int]) -> Packed2d:
        """Lay out the weights as is best for x of `size` [N, C, H, W]. Very different sizes are then slow."""
        wide = self.loose.contiguous(memory_format=torch.channels_last)
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(wide.to_mkldnn(), *self.sizes, 1, list(size))  # type: ignore[call-arg,arg-type]
        return self

    def plane(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] of the same type -> [N, O, H', W'], channels last."""
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.sizes, 1, "none", [], "")
        return y

    def add_plane(self, total: Tensor, x: Tensor) -> None:
        """total [N, O, H', W'], channels last, += the convolution of x."""
        torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, self.weight, self.bias, *self.sizes, 1, "add", 1.0, None, [], None
        )


Plane = tuple[Tensor, list[int], list[int], list[int]]  # weight [O, C, kh, kw], stride, padding, dilation


def as_plane(conv: nn.Conv3d) -> Plane | None:
    """The 2D convolution that a kernel over space alone, or over time alone, is: over (H, W) of each frame, or over
    (T, H W). None for other kernels."""
    kernel, stride, padding, dilation = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    assert not isinstance(padding, str)
    if conv.groups != 1:
        return None
    if kernel[0] == 1 and stride[0] == 1 and padding[0] == 0:
        return conv.weight[:, :, 0], list(stride[1:]), list(padding[1:]), list(dilation[1:])
    if kernel[1:] == (1, 1) and stride[1:] == (1, 1) and padding[1:] == (0, 0):
        return conv.weight[..., 0], [stride[0], 1], [padding[0], 0], [dilation[0], 1]
    return None


SIZES = 2  # that are remembered: the first piece of a stream has fewer frames than the others
_kept: WeakKeyDictionary[nn.Conv3d, dict[tuple[object, ...], Packed2d]] = WeakKeyDictionary()


def kept(conv: nn.Conv3d, plane: Plane, x: Tensor) -> Tensor:
    """`conv`, which is `plane`, of x [N, C, H, W]. Weights are laid out when they changed or for a new size of x: then
    it takes the time of the plain call. All streams through a network share them."""
    version = tuple(part for p in (conv.weight, conv.bias) if p is not None for part in (p.data_ptr(), p._version))
    mark = (version, x.shape)
    found = _kept.setdefault(conv, {})
    packed = found.get(mark)
    if packed is None:
        stale = [old for old in found if old[0] != version]
        if not stale and len(found) == SIZES:
            stale = [next(iter(found))]
        for old in stale:
            found.pop(old, None)
        weight, stride, padding, dilation = plane
        packed = found[mark] = Packed2d(weight, conv.bias, stride, padding, dilation).pack(x.shape)
    return packed.plane(x)
