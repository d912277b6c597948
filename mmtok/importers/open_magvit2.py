"""Open-MAGVIT2 (arXiv 2409.04410): `imagenet_256_L.ckpt` (keys under state_dict) and its YAML as `config.yaml`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, res_block
from mmtok.importers.vqgan import take_averages

SYSTEMS = ("open_magvit2_lfq",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """ddconfig of the published YAML."""
    try:
        return {"ddconfig": published["model"]["init_args"]["ddconfig"]}
    except (KeyError, TypeError):
        raise ValueError(
            "importer open_magvit2: the published YAML must lie beside the weights as config.yaml"
        ) from None


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; moving averages where the file has them."""
    dd = facts["ddconfig"]
    state, dropped = take_averages(state)
    mapped = apply(state, rules(len(dd["ch_mult"])))
    sizes = {
        "z_channels": dd["z_channels"], "channels": dd["ch"], "channel_mult": list(dd["ch_mult"]),
        "num_res_blocks": dd["num_res_blocks"], "mid_blocks": dd["num_res_blocks"], "mid_attention": False,
        "bias": False,
    }
    down, up = ({"class_path": f"mmtok.nn.magvit2d.{name}"} for name in ("SymmetricConv2d", "DepthToSpace2d"))
    quantizer = {"bits": dd["z_channels"], "entropy_eps": 1e-5}
    config = {
        "class_path": "mmtok.models.image.conv.ConvTokenizer",
        "init_args": {
            "encoder": {
                "class_path": "mmtok.nn.conv2d.ConvEncoder2d",
                "init_args": sizes | {"in_bias": False, "out_kernel": 1, "downsample": down},
            },
            "quantizer": {"class_path": "mmtok.quantizers.lookup_free.LFQ", "init_args": quantizer},
            "decoder": {
                "class_path": "mmtok.nn.conv2d.ConvDecoder2d", "init_args": sizes | {"adaptive": True, "upsample": up}
            },
            "size": [dd["resolution"]] * 2,
            "quant_conv": False,
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped | dropped)


def rules(levels: int) -> list[Rule | Drop]:
    """Decoder levels are stored from full resolution down, ours run from the lowest up."""
    out: list[Rule | Drop] = [
        Drop(r"loss\..*", "discriminator and LPIPS of the training"),
        Drop(r"quantize\..*", "powers of two and the list of all codes, which follow from the number of bits"),
        Rule(r"(encoder|decoder)\.(conv_in|norm_out|conv_out)\.(weight|bias)", r"\1.\2.\3"),
        *res_block(r"(?P<side>encoder|decoder)\.mid_block\.(?P<j>\d+)", r"\g<side>.mid.\g<j>"),
    ]
    for i in range(levels):
        theirs, ours = rf"decoder\.up\.{i}", f"decoder.levels.{levels - 1 - i}"
        style = f"decoder.styles.{levels - 1 - i}"
        out += res_block(rf"encoder\.down\.{i}\.block\.(?P<j>\d+)", rf"encoder.levels.{i}.blocks.\g<j>")
        out += res_block(theirs + r"\.block\.(?P<j>\d+)", ours + r".blocks.\g<j>")
        out += [
            Rule(rf"encoder\.down\.{i}\.downsample\.(weight|bias)", rf"encoder.levels.{i}.resample.conv.\1"),
            Rule(theirs + r"\.upsample\.conv1\.(weight|bias)", ours + r".resample.conv.\1"),
            Rule(rf"decoder\.adaptive\.{i}\.gamma\.(weight|bias)", style + r".scale.\1"),
            Rule(rf"decoder\.adaptive\.{i}\.beta\.(weight|bias)", style + r".shift.\1"),
        ]
    return out
