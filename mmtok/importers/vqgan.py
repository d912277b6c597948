"""What the importers of the VQGAN family share."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.importers.keymap import Config


def vq(dim: int, codebook_size: int, l2_norm: bool) -> Config:
    """Config of a codebook trained by gradient."""
    return {
        "class_path": "mmtok.quantizers.vq.VQ",
        "init_args": {"dim": dim, "codebook_size": codebook_size, "l2_norm": l2_norm},
    }


def vqgan_config(sizes: Config, num_res_blocks: int, quantizer: Config, image_size: int) -> Config:
    """Config of a ConvTokenizer whose decoder has one residual block a level more than its encoder."""
    encoder = sizes | {"num_res_blocks": num_res_blocks}
    decoder = sizes | {"num_res_blocks": num_res_blocks + 1}
    return {
        "class_path": "mmtok.models.image.conv.ConvTokenizer",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.conv2d.ConvEncoder2d", "init_args": encoder},
            "quantizer": quantizer,
            "decoder": {"class_path": "mmtok.nn.conv2d.ConvDecoder2d", "init_args": decoder},
            "size": [image_size, image_size],
        },
    }


def all_alive(codebook: Tensor) -> Tensor:
    """[V] `usage` of our quantizer, which published files do not hold: a fair share each, so that none is revived."""
    return torch.full((codebook.shape[0],), 1 / codebook.shape[0])


def level_widths(state: dict[str, Tensor], block: str) -> list[int]:
    """Output widths of the first residual block of every level; `block` holds {} where the level's number goes."""
    widths: list[int] = []
    while (key := f"{block.format(len(widths))}.conv1.weight") in state:
        widths.append(state[key].shape[0])
    if not widths:
        raise ValueError(f"importer: no key {block.format(0)}.conv1.weight: not weights of this system")
    return widths


def count(state: dict[str, Tensor], block: str) -> int:
    """How many residual blocks there are; `block` holds {} where their number goes."""
    number = 0
    while f"{block.format(number)}.conv1.weight" in state:
        number += 1
    return number
