"""A video tokenizer that starts from an image tokenizer: `python -m mmtok.training.inflate IMAGE VIDEO OUT`.

Legend: O output channels, k kernel.

IMAGE is a saved convolutional image tokenizer, VIDEO a recipe (.yaml) or a saved tokenizer, OUT a folder that the
recipe then names as `model.init_from`. Kernels over space are put into the last time slice, which is the present frame
of a causal convolution, the others are zero (MAGVIT-v2, Open-MAGVIT2): every frame is at first coded as an image.
Convolutions over time alone become the identity where they may.
"""

from __future__ import annotations

import argparse
import logging
import re

import torch
from torch import Tensor, nn

from mmtok import hub
from mmtok.nn.conv3d import CausalConv3d
from mmtok.tokenizer import Tokenizer
from mmtok.training.prepare import load_or_build

log = logging.getLogger(__name__)
_OURS = re.compile(r"\.(conv(?=\.(weight|bias)$)|space|norm(?=\.(weight|bias)$)|layers\.0)(?=\.)")


def inflate(image: nn.Module, video: nn.Module, average: bool = False) -> list[str]:
    """Fills `video` with the weights of `image`, in place; returns the names of parameters that keep their own values.

    Modules are matched by name: levels, blocks and convolutions of `ConvEncoder2d` and `ConvEncoder3d` (and decoders)
    have the same ones, apart from what a causal convolution adds.

    average  spread a kernel over its time slices instead, so that a still picture is coded alike
    ValueError when nothing matches.
    """
    given = {_plain(key): value for key, value in image.state_dict().items()}
    own = {name for name, module in video.named_modules() if isinstance(module, CausalConv3d) and _over_time(module)}
    state, kept = video.state_dict(), []
    taken = 0
    for key, value in state.items():
        source = given.get(_plain(key))
        new = None if source is None else _fit(source, value, average)
        if new is not None:
            state[key] = new.to(value)
            taken += 1
        elif (module := key.rpartition(".conv.")[0]) in own and value.dim() == 5 and value.shape[0] == value.shape[1]:
            state[key] = _identity(value)
        elif module in own and key.endswith(".bias"):
            state[key] = torch.zeros_like(value)
        else:
            kept.append(key)
    if not taken:
        raise ValueError("inflate: no weight of the image tokenizer has a counterpart of that name in the video one")
    video.load_state_dict(state)
    return kept


def _plain(key: str) -> str:
    """A parameter's name without what a causal convolution or a block over space and time puts into it."""
    before = ""
    while before != key:
        before, key = key, _OURS.sub("", key)
    return key


def _over_time(module: CausalConv3d) -> bool:
    return module.conv.kernel_size[0] > 1 and module.conv.kernel_size[1:] == (1, 1) and module.conv.stride[0] == 1


def _fit(source: Tensor, like: Tensor, average: bool) -> Tensor | None:
    """The source in the shape of `like`, or None where it has no place."""
    if source.shape == like.shape:
        return source
    if source.dim() == like.dim() and source.dim() == 1 and like.shape[0] == 2 * source.shape[0]:
        return source.repeat(2)  # a doubling of space becomes one of space and time: both frames alike
    if source.dim() != 4 or like.dim() != 5 or source.shape[1:] != (like.shape[1], *like.shape[3:]):
        return None
    if like.shape[0] == 2 * source.shape[0]:
        source = source.repeat(2, 1, 1, 1)
    if like.shape[0] != source.shape[0]:
        return None
    new, slices = torch.zeros_like(like), like.shape[2]
    if average:
        return new + source[:, :, None] / slices
    new[:, :, -1] = source
    return new


def _identity(like: Tensor) -> Tensor:
    """A kernel over time [O, O, k, 1, 1] that gives out the present frame."""
    new = torch.zeros_like(like)
    new[:, :, -1, 0, 0] = torch.eye(like.shape[0], dtype=like.dtype, device=like.device)
    return new


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mmtok.training.inflate", description=__doc__.splitlines()[0])
    parser.add_argument("image", help="saved image tokenizer")
    parser.add_argument("video", help="recipe (.yaml) or saved video tokenizer")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--average", action="store_true", help="spread kernels over time instead of the last slice")
    options = parser.parse_args(arguments)
    try:
        video: Tokenizer = load_or_build(options.video)
        kept = inflate(load_or_build(options.image), video, options.average)
        log.warning("inflate: %d of %d parameters keep their own values", len(kept), len(video.state_dict()))
        hub.save(video, options.out)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
