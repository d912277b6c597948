"""Networks of video tokenizers made ready for use on a CPU.

Weights are laid out once. In float32, kernels over values that stand twice are folded and wide convolutions take
Winograd's filtering; in bfloat16 everything between the ends of a stack stays in half precision, weights included,
instead of being cast at every layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmtok.nn.block_attention import BlockTransformer
from mmtok.nn.conv3d import PackedConv3d
from mmtok.nn.conv_video import ConvDecoder3d, ConvEncoder3d
from mmtok.nn.packed import as_plane
from mmtok.nn.repeat3d import RepeatConv3d
from mmtok.nn.vivit import SpatialTransformer, TemporalTransformer
from mmtok.nn.winograd import WinogradConv3d, fits

STACKS = (ConvEncoder3d, ConvDecoder3d, BlockTransformer, SpatialTransformer, TemporalTransformer)


def speed_up(network: nn.Module, dtype: torch.dtype) -> None:
    """Prepares a frozen network in place; dtype float32 or bfloat16. Parts outside of `STACKS` stay as they are."""
    half = dtype == torch.bfloat16
    for stack in [module for module in network.modules() if isinstance(module, STACKS)]:
        if half:
            stack.to(dtype)
            stack.register_forward_pre_hook(_down)
            stack.register_forward_hook(_up)
        prepare = _pack if half else _winograd
        repeats = [module for module in stack.modules() if isinstance(module, RepeatConv3d)]
        for repeat in repeats:
            repeat.fold(prepare)
        folded = {id(repeat.conv) for repeat in repeats}
        for parent in list(stack.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Conv3d) and id(child) not in folded:
                    setattr(parent, name, prepare(child))


def _winograd(conv: nn.Conv3d) -> nn.Conv3d:
    return WinogradConv3d(conv) if fits(conv) else _pack(conv)


def _pack(conv: nn.Conv3d) -> nn.Conv3d:
    if as_plane(conv) is not None:
        return PackedConv3d(conv)
    return conv.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


def _down(stack: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return inputs[0].to(torch.bfloat16), *inputs[1:]


def _up(stack: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.float()
