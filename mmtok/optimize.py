"""A tokenizer made ready for use on a CPU: folded and packed weights, one memory layout through convolutional stacks.

Legend: B batch, C channels, T time.

Measured (one core, AVX-512): a convolution over [B, C, T] as a 2D one in channels-last layout with weights packed
beforehand takes .35 (kernels of 1) to .95 of the time. It pays because all that lies between convolutions, activations
and sums, keeps the layout of its input: nothing is transposed but at the ends of a stack.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.snake import Snake
from mmtok.nn.weight_norm import fold_weight_norm
from mmtok.tokenizer import Tokenizer

T = TypeVar("T", bound=Tokenizer)


def optimize(tokenizer: T, dtype: torch.dtype = torch.float32) -> T:
    """The same tokenizer, changed in place: for encoding and decoding, no longer for training.

    dtype  float32 computes what was computed before, up to the order of sums; bfloat16 runs packed convolutions in
           half precision: some codes differ
    Weight normalization is folded on every device; convolutions are packed on a CPU. ValueError where bfloat16 is asked
    of a CPU without it.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"optimize: dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    tokenizer.eval().requires_grad_(False)
    device = next(tokenizer.parameters()).device
    packs = device.type == "cpu" and torch.backends.mkldnn.is_available()
    if dtype == torch.bfloat16 and not (packs and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        raise ValueError("optimize: bfloat16 needs a CPU that computes in it; use torch.float32, or autocast on a GPU")
    for network in (tokenizer.encoder, tokenizer.decoder):
        fold_weight_norm(network)
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is Snake:
                    setattr(parent, name, FrozenSnake(child))
                elif packs and type(child) is nn.Conv1d and child.groups == 1 and child.padding_mode == "zeros":
                    setattr(parent, name, PackedConv1d(child, dtype))
    return tokenizer


class PackedConv1d(nn.Module):
    """A frozen `nn.Conv1d` as oneDNN likes it: [B, C, T] -> [B, O, T'], channels last in memory.

    Where gradients are asked for, it is the plain convolution.
    """

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias, self.dtype = conv.weight, conv.bias, dtype
        assert not isinstance(conv.padding, str)
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.wide = [[0, conv.padding[0]], [1, conv.stride[0]], [1, conv.dilation[0]]]
        weight = conv.weight.detach().to(dtype)[:, :, None].contiguous(memory_format=torch.channels_last)
        # not a buffer: it is what the weight already says, in a form that cannot be saved
        self._packed = (torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *self.wide, 1),)  # type: ignore[call-arg, arg-type]
        self._bias = (None if conv.bias is None else conv.bias.detach().to(dtype),)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad or x.device.type != "cpu":
            return F.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        wide = x[:, :, None].to(self.dtype).contiguous(memory_format=torch.channels_last)
        y = torch.ops.mkldnn._convolution_pointwise(
            wide, self._packed[0], self._bias[0], *self.wide, 1, "none", [], ""
        )
        return y[:, :, 0].to(x.dtype)


class FrozenSnake(nn.Module):
    """`Snake` with its factors computed beforehand and no more memory than it needs."""

    inverse: Tensor

    def __init__(self, snake: Snake) -> None:
        super().__init__()
        self.alpha = snake.alpha
        self.register_buffer("inverse", (snake.alpha.detach() + 1e-9).reciprocal(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        wave = self.alpha * x
        if torch.is_grad_enabled() and x.requires_grad:
            return x + self.inverse * wave.sin().square()
        return torch.addcmul(x, self.inverse, wave.sin_().square_())
