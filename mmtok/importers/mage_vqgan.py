"""MAGE's VQGAN (arXiv 2211.09117), the base of KARL and ALIT: `vqgan_jax_strongaug.ckpt`, no config file.

MaskGIT's architecture with taming's key names: no attention, no quant_conv, images in [0, 1]. The names follow the
published code; no published file was at hand, so every key must be known and every flag is read off the weights.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, res_block
from mmtok.importers.vqgan import all_alive, count, level_widths, vq

SYSTEMS = ("mage_vqgan",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes and flags read off the weights; the published model sees 256 pixels."""
    widths = level_widths(state, "encoder.down.{}.block.0")
    channels = state["encoder.conv_in.weight"].shape[0]
    codes, dim = state["quantize.embedding.weight"].shape
    return {
        "channels": channels, "channel_mult": [width // channels for width in widths],
        "num_res_blocks": count(state, "encoder.down.0.block.{}"),
        "decoder_res_blocks": count(state, "decoder.up.0.block.{}"), "mid_blocks": _mid_blocks(state), "dim": dim,
        "codebook_size": codes, "bias": "encoder.down.0.block.0.conv1.bias" in state,
        "in_bias": "encoder.conv_in.bias" in state, "out_kernel": state["encoder.conv_out.weight"].shape[-1],
        "shortcut_on_branch": _shortcut_on_branch(state), "strided": "encoder.down.0.downsample.conv.weight" in state,
        "image_size": 256,
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    mapped = apply(state, rules(len(facts["channel_mult"])))
    mapped.state["quantizer.usage"] = all_alive(mapped.state["quantizer.codebook"])
    return Converted(config(facts), mapped.state, mapped.source, mapped.dropped)


def config(facts: dict[str, Any]) -> Config:
    """Config of the convolutional tokenizer."""
    sizes = {
        "z_channels": facts["dim"], "channels": facts["channels"], "channel_mult": list(facts["channel_mult"]),
        "mid_blocks": facts["mid_blocks"], "mid_attention": False, "bias": facts["bias"],
        "shortcut_on_branch": facts["shortcut_on_branch"],
    }
    down = "StridedConv2d" if facts["strided"] else "AveragePool2d"
    encoder = sizes | {
        "num_res_blocks": facts["num_res_blocks"], "in_bias": facts["in_bias"], "out_kernel": facts["out_kernel"],
        "downsample": {"class_path": f"mmtok.nn.conv2d.{down}"},
    }
    decoder = sizes | {"num_res_blocks": facts["decoder_res_blocks"]}
    return {
        "class_path": "mmtok.models.image.conv.ConvTokenizer",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.conv2d.ConvEncoder2d", "init_args": encoder},
            "quantizer": vq(facts["dim"], facts["codebook_size"], l2_norm=False),
            "decoder": {"class_path": "mmtok.nn.conv2d.ConvDecoder2d", "init_args": decoder},
            "size": [facts["image_size"]] * 2, "quant_conv": False, "unit_range": True,
        },
    }


def rules(levels: int) -> list[Rule | Drop]:
    """taming's layout without attention; middle blocks are counted from 1."""
    out: list[Rule | Drop] = [
        Rule(r"quantize\.embedding\.weight", "quantizer.codebook"),
        Rule(r"(encoder|decoder)\.(conv_in|norm_out|conv_out)\.(weight|bias)", r"\1.\2.\3"),
        Rule(
            r"encoder\.down\.(\d+)\.downsample\.conv\.(weight|bias)", r"encoder.levels.\1.resample.conv.\2"
        ),
        *res_block(r"encoder\.down\.(?P<i>\d+)\.block\.(?P<j>\d+)", r"encoder.levels.\g<i>.blocks.\g<j>"),
    ]
    for side in ("encoder", "decoder"):
        for i in range(1, 5):
            out += res_block(rf"{side}\.mid\.block_{i}", f"{side}.mid.{i - 1}")
    for i in range(levels):
        level = f"decoder.levels.{levels - 1 - i}"
        out += res_block(rf"decoder\.up\.{i}\.block\.(?P<j>\d+)", level + r".blocks.\g<j>")
        out.append(Rule(rf"decoder\.up\.{i}\.upsample\.conv\.(weight|bias)", level + r".resample.conv.\1"))
    return out


def inside(
    state: dict[str, Tensor], prefix: str = "base_tokenizer.vqgan."
) -> tuple[Converted | None, dict[str, Tensor]]:
    """(the base of a file that holds it under `prefix`, None when it holds no more than the codebook; the rest).

    Keys of the base come back as `base.*` in `state`, and under their full published names in `source` and `dropped`.
    """
    base = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    codebook = "quantize.embedding.weight"
    if set(base) <= {codebook}:
        return None, state
    found = convert(base, facts({}, base))
    renamed = {f"base.{key}": value for key, value in found.state.items()}
    source = {f"base.{key}": prefix + value for key, value in found.source.items() if value != codebook}
    dropped = {prefix + key: reason for key, reason in found.dropped.items()}
    rest = {key: v for key, v in state.items() if not key.startswith(prefix) or key == prefix + codebook}
    return Converted(found.config, renamed, source, dropped), rest


def _mid_blocks(state: dict[str, Tensor]) -> int:
    return len({m.group(1) for key in state if (m := re.match(r"encoder\.mid\.block_(\d+)\.", key))})


def _shortcut_on_branch(state: dict[str, Tensor]) -> bool:
    """Whether the shortcut of a block that changes the width reads the block's own output."""
    for key, value in state.items():
        if key.endswith("nin_shortcut.weight"):
            width = state[key.replace("nin_shortcut", "conv1")].shape[1]
            return value.shape[1] != width
    return True
