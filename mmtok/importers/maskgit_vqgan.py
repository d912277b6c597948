"""MaskGIT-VQGAN (arXiv 2202.04200) as TiTok publishes it: `maskgit-vqgan-imagenet-f16-256.bin`, no config file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, res_block
from mmtok.importers.vqgan import all_alive, count, level_widths, vq

SYSTEMS = ("maskgit_vqgan",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; the published model sees 256 pixels."""
    widths = level_widths(state, "encoder.down.{}.block.0")
    channels = state["encoder.conv_in.weight"].shape[0]
    codes, dim = state["quantize.embedding.weight"].shape
    return {
        "hidden_channels": channels, "channel_mult": [width // channels for width in widths],
        "num_res_blocks": count(state, "encoder.down.0.block.{}"), "z_channels": dim, "codebook_size": codes,
        "image_size": 256,
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    levels = len(facts["channel_mult"])
    rules = [
        Rule(r"quantize\.embedding\.weight", "quantizer.codebook"), *encoder_rules(),
        *decoder_rules(r"decoder", "decoder", levels),
    ]
    mapped = apply(state, rules)
    mapped.state["quantizer.usage"] = all_alive(mapped.state["quantizer.codebook"])
    encoder = sizes(facts) | {
        "in_bias": False, "out_kernel": 1, "downsample": {"class_path": "mmtok.nn.conv2d.AveragePool2d"}
    }
    config = {
        "class_path": "mmtok.models.image.conv.ConvTokenizer",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.conv2d.ConvEncoder2d", "init_args": encoder},
            "quantizer": vq(facts["z_channels"], facts["codebook_size"], l2_norm=False),
            "decoder": decoder_config(facts),
            "size": [facts["image_size"]] * 2,
            "quant_conv": False,
            "unit_range": True,
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def sizes(facts: dict[str, Any]) -> Config:
    """Arguments that encoder and decoder share."""
    return {
        "z_channels": facts["z_channels"], "channels": facts["hidden_channels"],
        "channel_mult": list(facts["channel_mult"]), "num_res_blocks": facts["num_res_blocks"],
        "mid_blocks": facts["num_res_blocks"], "mid_attention": False, "bias": False, "shortcut_on_branch": True,
    }


def decoder_config(facts: dict[str, Any]) -> Config:
    """The decoder, which is also the pixel decoder of two-stage TiTok."""
    return {"class_path": "mmtok.nn.conv2d.ConvDecoder2d", "init_args": sizes(facts)}


def encoder_rules() -> list[Rule | Drop]:
    return [
        Rule(r"encoder\.(conv_in|norm_out|conv_out)\.(weight|bias)", r"encoder.\1.\2"),
        *res_block(r"encoder\.down\.(?P<i>\d+)\.block\.(?P<j>\d+)", r"encoder.levels.\g<i>.blocks.\g<j>"),
        *res_block(r"encoder\.mid\.(?P<j>\d+)", r"encoder.mid.\g<j>"),
    ]


def decoder_rules(theirs: str, ours: str, levels: int) -> list[Rule | Drop]:
    """Rules under the prefixes `theirs` and `ours`; published levels run from full resolution down, ours up."""
    out: list[Rule | Drop] = [Rule(theirs + r"\.(conv_in|norm_out|conv_out)\.(weight|bias)", ours + r".\1.\2")]
    for i in range(levels):
        level = f"{ours}.levels.{levels - 1 - i}"
        out += res_block(theirs + rf"\.up\.{i}\.block\.(?P<j>\d+)", level + r".blocks.\g<j>")
        out.append(Rule(theirs + rf"\.up\.{i}\.upsample_conv\.(weight|bias)", level + r".resample.conv.\1"))
    return [*out, *res_block(theirs + r"\.mid\.(?P<j>\d+)", ours + r".mid.\g<j>")]
