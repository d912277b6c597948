"""CogVideoX's video VAE (arXiv 2408.06072): a diffusers folder with config.json. A VAE sends no codes: the tokenizer
around it reconstructs and gives latents, for quantizers on top of it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Rule, apply

SYSTEMS = ("cogvideox_vae",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes of config.json."""
    wanted = (
        "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "temporal_compression_ratio"
    )  # fmt: skip
    missing = [name for name in wanted if name not in published]
    if missing:
        raise ValueError(f"importer cogvideox: config.json beside the weights lacks {', '.join(missing)}")
    return {name: published[name] for name in wanted}


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; two latents at a time after the first, as published."""
    mapped = apply(state, RULES)
    shared = {
        "z_channels": facts["latent_channels"], "widths": list(facts["block_out_channels"]),
        "layers": facts["layers_per_block"], "groups": facts["norm_num_groups"],
        "time_steps": int(math.log2(facts["temporal_compression_ratio"])),
    }
    config = {
        "class_path": "mmtok.models.video.conv.ConvVideoTokenizer",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.cogvideox.CogVideoXEncoder", "init_args": shared},
            "quantizer": {
                "class_path": "mmtok.quantizers.continuous.Gaussian", "init_args": {"dim": facts["latent_channels"]}
            },
            "decoder": {"class_path": "mmtok.nn.cogvideox.CogVideoXDecoder", "init_args": shared},
            "size": [49, 480, 720], "rate": 8.0, "piece": 2,
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


_LEAF = r"(?P<leaf>weight|bias)"


def _block(theirs: str, ours: str) -> list[Rule]:
    norm = rf"{theirs}\.(?P<part>norm[12])"
    return [
        Rule(rf"{norm}\.{_LEAF}", ours + r".\g<part>.norm.\g<leaf>"),
        Rule(rf"{norm}\.norm_layer\.{_LEAF}", ours + r".\g<part>.norm.norm.\g<leaf>"),
        Rule(rf"{theirs}\.(?P<part>conv[12])\.conv\.{_LEAF}", ours + r".\g<part>.conv.\g<leaf>"),
        Rule(rf"{theirs}\.conv_shortcut\.{_LEAF}", ours + r".shortcut.\g<leaf>"),
        Rule(rf"{norm}\.conv_y\.conv\.{_LEAF}", ours + r".\g<part>.scale.\g<leaf>"),
        Rule(rf"{norm}\.conv_b\.conv\.{_LEAF}", ours + r".\g<part>.shift.\g<leaf>"),
    ]


def _to_3d(weight: Tensor) -> Tensor:
    return weight[:, :, None]


_SIDE = r"(?P<side>encoder|decoder)"
_SAMPLE = rf"{_SIDE}\.(?:down|up)_blocks\.(?P<i>\d+)\.(?:down|up)samplers\.0\.conv"
RULES = [
    Rule(rf"{_SIDE}\.(?P<at>conv_in|conv_out)\.conv\.{_LEAF}", r"\g<side>.\g<at>.conv.\g<leaf>"),
    Rule(rf"encoder\.norm_out\.{_LEAF}", r"encoder.norm_out.norm.\g<leaf>"),
    Rule(rf"decoder\.norm_out\.norm_layer\.{_LEAF}", r"decoder.norm_out.norm.norm.\g<leaf>"),
    Rule(rf"decoder\.norm_out\.conv_y\.conv\.{_LEAF}", r"decoder.norm_out.scale.\g<leaf>"),
    Rule(rf"decoder\.norm_out\.conv_b\.conv\.{_LEAF}", r"decoder.norm_out.shift.\g<leaf>"),
    Rule(rf"{_SAMPLE}\.weight", r"\g<side>.levels.\g<i>.resample.conv.conv.weight", _to_3d),
    Rule(rf"{_SAMPLE}\.bias", r"\g<side>.levels.\g<i>.resample.conv.conv.bias"),
    *_block(rf"{_SIDE}\.mid_block\.resnets\.(?P<j>\d+)", r"\g<side>.mid.blocks.\g<j>"),
    *_block(rf"{_SIDE}\.(?:down|up)_blocks\.(?P<i>\d+)\.resnets\.(?P<j>\d+)", r"\g<side>.levels.\g<i>.blocks.\g<j>"),
]
