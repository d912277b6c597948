"""A tokenizer made ready for use on a CPU: folded and packed weights, one memory layout through convolutional stacks.

Legend: B batch, C channels, T time, S stride.

Measured (one core, AVX-512): a convolution over [B, C, T] as a 2D one in channels-last layout with weights packed
beforehand takes .35 (kernels of 1) to .95 of the time, a transposed one as a convolution that gives S samples a step .1
to .8. It pays because all that lies between convolutions, activations and sums, keeps the layout of its input: nothing
is transposed but at the ends of a stack.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.attention import MLP
from mmtok.nn.dac import ResidualUnit
from mmtok.nn.fast_video import speed_up
from mmtok.nn.layout import channels_last
from mmtok.nn.packed import Packed2d, packable
from mmtok.nn.snake import Snake
from mmtok.nn.weight_norm import fold_weight_norm
from mmtok.quantizers.residual import Residual
from mmtok.tokenizer import Tokenizer

T = TypeVar("T", bound=Tokenizer)


def optimize(tokenizer: T, dtype: torch.dtype = torch.float32) -> T:
    """The same tokenizer, changed in place: for encoding and decoding, no longer for training.

    dtype  float32 computes what was computed before, up to the order of sums; bfloat16 runs encoder and decoder in
           half precision: some codes differ
    Weight normalization is folded on every device; on a CPU weights are packed and networks of video tokenizers
    prepared as `mmtok.nn.fast_video` says. ValueError where bfloat16 is asked of a CPU without it.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"optimize: dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    tokenizer.eval().requires_grad_(False)
    device = next(tokenizer.parameters()).device
    packs = device.type == "cpu" and torch.float32 in packable()
    if dtype == torch.bfloat16 and (device.type != "cpu" or dtype not in packable()):
        raise ValueError("optimize: bfloat16 needs a CPU that computes in it; use torch.float32, or autocast on a GPU")
    for network in (tokenizer.encoder, tokenizer.decoder):
        fold_weight_norm(network)
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if packs and (packed := _packed(child, dtype)) is not None:
                    setattr(parent, name, packed)
                elif dtype == torch.bfloat16 and isinstance(child, nn.LSTM):
                    child.to(dtype).register_forward_pre_hook(_halved)
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ResidualUnit) and isinstance(child.layers[-1], PackedConv1d):
                    setattr(parent, name, PackedUnit(child))
                elif isinstance(child, MLP) and isinstance(child.up, PackedLinear):
                    setattr(parent, name, PackedMLP(child))
        if packs:
            speed_up(network, dtype)
        if dtype == torch.bfloat16:
            # an attribute of the instance: what is neither packed nor an activation chooses its own precision
            network.forward = torch.autocast(device.type, dtype)(network.forward)  # type: ignore[method-assign]
    for part in tokenizer.quantizer.modules():
        if isinstance(part, Residual):
            part.freeze()
    return tokenizer


def _packed(child: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    if type(child) is nn.Linear:
        return PackedLinear(child, dtype)
    if not isinstance(child, nn.Conv1d | nn.ConvTranspose1d) or child.groups != 1 or child.padding_mode != "zeros":
        return None
    if isinstance(child, nn.Conv1d):
        # oneDNN crashes on some that leave samples out or pad a single tap; no codec has them
        odd = child.stride > child.kernel_size or (child.kernel_size == (1,) and child.padding != (0,))
        return None if odd else PackedConv1d(child, dtype)
    # a tuple: transposed convolutions take no padding by name
    fits = child.dilation == (1,) and child.output_padding <= tuple(child.padding)
    return PackedConvTranspose1d(child, dtype) if fits else None


def _halved(lstm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return inputs[0].to(torch.bfloat16), *inputs[1:]


class _Packed(Packed2d):
    """One convolution over time, computed as one over [B, C, 1, T], channels last; packed anew when B, or T by a factor
    of two, changes."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, padding: int, stride: int, dilation: int, dtype: torch.dtype
    ) -> None:
        super().__init__(weight[:, :, None].to(dtype), bias, (1, stride), (0, padding), (1, dilation))
        self._size: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, O, T'] with channels last in memory."""
        return self.plane(self._wide(x))[:, :, 0]

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """total [B, O, T'] + the convolution of x [B, C, T]; in place where `total` has the layout and the type."""
        total = channels_last(total[:, :, None].to(self.dtype))
        self.add_plane(total, self._wide(x))
        return total[:, :, 0]

    def _wide(self, x: Tensor) -> Tensor:
        size = [*x.shape[:2], 1, 1 << (x.shape[2] - 1).bit_length()]
        if size != self._size:
            self.pack(size)
            self._size = size  # last: another thread may be here too
        return channels_last(x[:, :, None].to(self.dtype))


class PackedConv1d(nn.Module):
    """A frozen `nn.Conv1d` as oneDNN likes it: [B, C, T] -> [B, O, T'] of `dtype`, channels last in memory.

    Where gradients are asked for, it is the plain convolution.
    """

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.packed = _Packed(conv.weight, conv.bias, conv.padding[0], conv.stride[0], conv.dilation[0], dtype)

    def forward(self, x: Tensor) -> Tensor:
        if _plain(x, self.packed.dtype):
            return F.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        return self.packed(x)


class PackedUnit(nn.Module):
    """A residual unit of `mmtok.nn.dac` whose last convolution, of one tap, adds to its input in place."""

    def __init__(self, unit: ResidualUnit) -> None:
        super().__init__()
        self.layers = unit.layers

    def forward(self, x: Tensor) -> Tensor:
        first, wide, second, last = self.layers
        assert isinstance(last, PackedConv1d)
        y = wide(first(x))
        if _plain(y, last.packed.dtype):
            return x + last(second(y))
        return last.packed.add_to(x, second(y, inplace=True) if isinstance(second, Snake) else second(y))


class PackedConvTranspose1d(nn.Module):
    """A frozen `nn.ConvTranspose1d` as a convolution at the low rate: its channels are the S samples of each step.

    Samples t S + j see steps t, t - 1, ...: tap m of the convolution holds positions m S + j of the kernel.
    """

    def __init__(self, conv: nn.ConvTranspose1d, dtype: torch.dtype) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.output_padding = conv.stride, conv.padding, conv.output_padding
        inputs, outputs, kernel = conv.weight.shape
        (step,) = conv.stride
        taps = -(-kernel // step)
        whole = F.pad(conv.weight.detach(), (0, taps * step - kernel)).view(inputs, outputs, taps, step).flip(2)
        weight = whole.permute(3, 1, 0, 2).reshape(step * outputs, inputs, taps)
        bias = None if conv.bias is None else conv.bias.detach().repeat(step)
        self.packed = _Packed(weight, bias, taps - 1, 1, 1, dtype)

    def forward(self, x: Tensor) -> Tensor:
        if _plain(x, self.packed.dtype):
            return F.conv_transpose1d(x, self.weight, self.bias, self.stride, self.padding, self.output_padding)
        (step,), (start,) = self.stride, self.padding
        length = (x.shape[2] - 1) * step - 2 * start + self.weight.shape[2] + self.output_padding[0]
        return self._samples(self.packed(x))[..., start : start + length]

    def _samples(self, y: Tensor) -> Tensor:
        """[B, S * O, n] -> [B, O, n * S]: channels last in memory, both are [B, n, S, O]."""
        return y.transpose(1, 2).reshape(y.shape[0], -1, self.weight.shape[1]).transpose(1, 2)


class PackedLinear(nn.Module):
    """A frozen `nn.Linear` by oneDNN's inner product: [..., C] -> [..., O] of `dtype`."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.dtype = dtype
        bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        # a tuple hides tensors from state_dict
        self.packed = (torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), None), bias)

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """`gelu` applies the exact GELU to the result."""
        if _plain(x, self.dtype) or not x.numel():
            plain = F.linear(x, self.weight, self.bias)
            return F.gelu(plain) if gelu else plain
        after = "gelu" if gelu else "none"
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), *self.packed, after, [], "none")
        return y


class PackedMLP(nn.Module):
    """`mmtok.nn.attention.MLP` with GELU inside the first product."""

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.up, self.down = mlp.up, mlp.down

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.down(self.up(x, gelu=True))  # type: ignore[no-any-return]


def _plain(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether packed weights cannot be used: gradients, another device, a part that switches half precision off."""
    if (torch.is_grad_enabled() and x.requires_grad) or x.device.type != "cpu":
        return True
    return x.dtype != dtype and not torch.is_autocast_enabled("cpu") and dtype != torch.float32
