"""What the importers of the VQGAN family share."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.importers.keymap import Config

EMA = "model_ema."


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


def attn_levels(dd: Config) -> list[int]:
    """Levels with attention; a published ddconfig counts resolutions at its input size."""
    return [i for i in range(len(dd["ch_mult"])) if dd["resolution"] >> i in dd.get("attn_resolutions", [])]


def take_averages(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state with every parameter replaced by its moving average, reason by dropped key).

    Lightning checkpoints of the taming line hold averages as `model_ema.<name without its dots>`. A state without
    them stays as it is.
    """
    averages = {key: value for key, value in state.items() if key.startswith(EMA)}
    out = {key: value for key, value in state.items() if not key.startswith(EMA)}
    dropped = {f"{EMA}{name}": "counter of the average" for name in ("decay", "num_updates") if f"{EMA}{name}" in state}
    for key in out:
        average = EMA + key.replace(".", "")
        if average in averages:
            out[key] = averages[average]
            dropped[average] = f"moving average, taken as {key}"
    dropped |= {key: "moving average of a module that is left out" for key in averages if key.startswith(EMA + "loss")}
    left = sorted(set(averages) - set(dropped))
    if left:
        raise ValueError(f"importer: averages of unknown parameters: {', '.join(left[:5])}")
    return out, dropped


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
