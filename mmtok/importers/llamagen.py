"""LlamaGen VQ (arXiv 2406.06525): `vq_ds16_c2i.pt`, `vq_ds8_c2i.pt` (keys under model or ema), no config file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, attention, res_block
from mmtok.importers.vqgan import all_alive, count, level_widths, vq, vqgan_config

SYSTEMS = ("llamagen_vq",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; the images of the published models are 256 pixels wide and high."""
    widths = level_widths(state, "encoder.conv_blocks.{}.res.0")
    channels = state["encoder.conv_in.weight"].shape[0]
    codes, dim = state["quantize.embedding.weight"].shape
    return {
        "ch": channels, "ch_mult": [width // channels for width in widths],
        "num_res_blocks": count(state, "encoder.conv_blocks.0.res.{}"),
        "z_channels": state["quant_conv.weight"].shape[1],
        "codebook_size": codes, "codebook_embed_dim": dim, "l2_norm": True, "image_size": 256,
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    mapped = apply(state, RULES)
    mapped.state["quantizer.usage"] = all_alive(mapped.state["quantizer.codebook"])
    sizes = {
        "z_channels": facts["z_channels"], "channels": facts["ch"], "channel_mult": list(facts["ch_mult"]),
        "attn_levels": [len(facts["ch_mult"]) - 1],
    }
    quantizer = vq(facts["codebook_embed_dim"], facts["codebook_size"], facts["l2_norm"])
    config = vqgan_config(sizes, facts["num_res_blocks"], quantizer, facts["image_size"])
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


_LEVEL = r"(?P<side>encoder|decoder)\.conv_blocks\.(?P<i>\d+)"
_MID = r"(?P<side>encoder|decoder)\.mid"
RULES: list[Rule | Drop] = [
    Drop(r"quantize\.codebook_used", "usage window of the training"),
    Rule(r"quantize\.embedding\.weight", "quantizer.codebook"),
    Rule(r"(quant_conv|post_quant_conv)\.(weight|bias)", r"\1.\2"),
    Rule(r"(encoder|decoder)\.(conv_in|norm_out|conv_out)\.(weight|bias)", r"\1.\2.\3"),
    *res_block(_LEVEL + r"\.res\.(?P<j>\d+)", r"\g<side>.levels.\g<i>.blocks.\g<j>"),
    *attention(_LEVEL + r"\.attn\.(?P<j>\d+)", r"\g<side>.levels.\g<i>.attentions.\g<j>"),
    Rule(
        _LEVEL + r"\.(?:downsample|upsample)\.conv\.(?P<leaf>weight|bias)",
        r"\g<side>.levels.\g<i>.resample.conv.\g<leaf>",
    ),
    *res_block(_MID + r"\.(?P<j>0|2)", r"\g<side>.mid.\g<j>"),
    *attention(_MID + r"\.1", r"\g<side>.mid.1"),
]
