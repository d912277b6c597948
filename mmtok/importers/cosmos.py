"""Cosmos discrete video tokenizers (arXiv 2501.03575): `encoder.jit` and `decoder.jit`, `autoencoder.jit` or a state
dict, in a folder with a `config.json` that states `spatial_compression` and `temporal_compression`."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply

SYSTEMS = ("cosmos_dv", "cosmos_dv_4x8x8_p2", "cosmos_dv_8x16x16")
LEVELS = [8, 8, 8, 5, 5, 5]  # of every released model


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Widths read off the weights; strides, which no weight tells, from config.json."""
    found = {name: published.get(name) for name in ("spatial_compression", "temporal_compression")}
    if not all(isinstance(value, int) for value in found.values()):
        raise ValueError(
            "importer cosmos: a config.json must lie beside the weights that states spatial_compression and"
            " temporal_compression (DV8x16x16: 16 and 8)"
        )
    try:
        stem, last = state["encoder.conv_in.0.conv3d.weight"], state["encoder.conv_out.1.conv3d.weight"]
    except KeyError as error:
        raise ValueError(f"importer cosmos: no key {error}: not weights of this system") from None
    widths: list[int] = []
    while (key := f"encoder.down.{len(widths)}.block.0.conv1.1.conv3d.weight") in state:
        widths.append(state[key].shape[0])
    blocks = 0
    while f"encoder.down.0.block.{blocks}.norm1.norm.weight" in state:
        blocks += 1
    channels = stem.shape[0]
    return found | {
        "channels": channels, "channels_mult": [width // channels for width in widths], "num_res_blocks": blocks,
        "z_channels": last.shape[0], "patch_size": round((stem.shape[1] / 3) ** (1 / 3)),
        "levels": list(published.get("levels", LEVELS)),
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; convolutions of levels that do not change size are left out."""
    patch, count = facts["patch_size"], len(facts["channels_mult"])
    space, time = (int(math.log2(facts[f"{name}_compression"] // patch)) for name in ("spatial", "temporal"))
    down = [[1 + (i < time), 1 + (i < space)] for i in range(count - 1)]
    up = []
    for i in range(count - 1):  # in the decoder time grows one level later than space
        grows = 0 < i < time + 1
        up.append([1 + grows, 1 + (grows or (i < space and space > time))])
    mapped = apply(state, rules(down, up))
    shared: Config = {
        "parts": {"class_path": "mmtok.nn.video_parts.CosmosParts", "init_args": {"patch": patch}},
        "z_channels": facts["z_channels"], "channels": facts["channels"], "channel_mult": list(facts["channels_mult"]),
    }
    blocks = facts["num_res_blocks"]
    config = {
        "class_path": "mmtok.models.video.conv.ConvVideoTokenizer",
        "init_args": {
            "encoder": {
                "class_path": "mmtok.nn.conv_video.ConvEncoder3d",
                "init_args": shared | {"num_res_blocks": blocks, "strides": down},
            },
            "quantizer": {"class_path": "mmtok.quantizers.fsq.FSQ", "init_args": {"levels": facts["levels"]}},
            "decoder": {
                "class_path": "mmtok.nn.conv_video.ConvDecoder3d",
                "init_args": shared | {"num_res_blocks": blocks + 1, "strides": up},
            },
            "size": [49, 256, 256], "quant_conv": True,
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def rules(down: list[list[int]], up: list[list[int]]) -> list[Rule | Drop]:
    """Decoder levels are stored from full resolution down, ours run from the lowest up."""
    leaf = r"\.conv3d\.(?P<leaf>weight|bias)"
    out: list[Rule | Drop] = [
        Drop(r".*\.(wavelets|_arange|patch_size_buffer)", "fixed wavelets of the traced modules"),
        Drop(r"(inv_quant\.)?quantizer\..*", "tables of the quantizer, which follow from the levels"),
        Rule(r"(quant_conv|post_quant_conv)\.conv3d\.(weight|bias)", r"\1.\2"),
        Rule(r"(?P<side>encoder|decoder)\.(?P<at>conv_in|conv_out)\.0" + leaf, r"\g<side>.\g<at>.space.conv.\g<leaf>"),
        Rule(r"(?P<side>encoder|decoder)\.(?P<at>conv_in|conv_out)\.1" + leaf, r"\g<side>.\g<at>.time.conv.\g<leaf>"),
        Rule(r"(encoder|decoder)\.norm_out\.norm\.(weight|bias)", r"\1.norm_out.\2"),
    ]
    for theirs, ours in (("block_1", 0), ("block_2", 3)):
        out += block(rf"(?P<side>encoder|decoder)\.mid\.{theirs}", rf"\g<side>.mid.{ours}")
    for i in range(2):
        at, to = rf"(?P<side>encoder|decoder)\.mid\.attn_1\.{i}", rf"\g<side>.mid.{i + 1}"
        out += [
            Rule(at + r"\.norm\.norm\.(?P<leaf>weight|bias)", to + r".norm.\g<leaf>"),
            Rule(at + r"\.(?P<part>q|k|v)" + leaf, to + r".\g<part>.\g<leaf>"),
            Rule(at + r"\.proj_out" + leaf, to + r".out.\g<leaf>"),
        ]
    levels = len(down) + 1
    for i in range(levels):
        out += block(rf"encoder\.down\.{i}\.block\.(?P<j>\d+)", rf"encoder.levels.{i}.blocks.\g<j>")
        out += block(rf"decoder\.up\.{i}\.block\.(?P<j>\d+)", rf"decoder.levels.{levels - 1 - i}.blocks.\g<j>")
    for i, (time, space) in enumerate(down):
        theirs = rf"encoder\.down\.{i}\.downsample"
        out += resample(theirs, f"encoder.levels.{i}.resample", ("space", "time"), time, space)
    for i, (time, space) in enumerate(up):
        theirs = rf"decoder\.up\.{levels - 1 - i}\.upsample"
        out += resample(theirs, f"decoder.levels.{i}.resample", ("time", "space"), time, space)
    return out


def resample(theirs: str, ours: str, order: tuple[str, str], time: int, space: int) -> list[Rule | Drop]:
    """Rules for one change of size; `order` names what its first two convolutions are for."""
    leaf = r"\.conv3d\.(?P<leaf>weight|bias)"
    used = {"time": time == 2, "space": space == 2}
    out: list[Rule | Drop] = []
    for number, name in enumerate(order, 1):
        if used[name]:
            out.append(Rule(rf"{theirs}\.conv{number}{leaf}", rf"{ours}.{name}.conv.\g<leaf>"))
    if any(used.values()):
        out.append(Rule(rf"{theirs}\.conv3{leaf}", ours + r".out.\g<leaf>"))
    out.append(Drop(rf"{theirs}\..*", "the level does not change size this way: never used"))
    return out


def block(theirs: str, ours: str) -> list[Rule | Drop]:
    """Rules for one factorised residual block."""
    leaf = r"\.conv3d\.(?P<leaf>weight|bias)"
    return [
        Rule(theirs + r"\.(?P<part>norm[12])\.norm\.(?P<leaf>weight|bias)", ours + r".\g<part>.\g<leaf>"),
        Rule(theirs + r"\.(?P<part>conv[12])\.0" + leaf, ours + r".\g<part>.space.conv.\g<leaf>"),
        Rule(theirs + r"\.(?P<part>conv[12])\.1" + leaf, ours + r".\g<part>.time.conv.\g<leaf>"),
        Rule(theirs + r"\.nin_shortcut" + leaf, ours + r".shortcut.\g<leaf>"),
    ]
