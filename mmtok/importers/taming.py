"""taming-transformers VQGAN (arXiv 2012.09841): `last.ckpt` (keys under state_dict) and its `model.yaml`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, attention, res_block
from mmtok.importers.vqgan import all_alive, attn_levels, vq, vqgan_config

SYSTEMS = ("taming_vqgan",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """{ddconfig, embed_dim, codebook_size} of the published model.yaml."""
    try:
        params = published["model"]["params"]
        return {"ddconfig": params["ddconfig"], "embed_dim": params["embed_dim"], "codebook_size": params["n_embed"]}
    except (KeyError, TypeError):
        raise ValueError("importer taming: the published model.yaml must lie beside the weights") from None


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    dd = facts["ddconfig"]
    levels = len(dd["ch_mult"])
    mapped = apply(state, rules(levels))
    mapped.state["quantizer.usage"] = all_alive(mapped.state["quantizer.codebook"])
    sizes = {
        "z_channels": dd["z_channels"], "channels": dd["ch"], "channel_mult": list(dd["ch_mult"]),
        "attn_levels": attn_levels(dd),
    }
    quantizer = vq(facts["embed_dim"], facts["codebook_size"], l2_norm=False)
    config = vqgan_config(sizes, dd["num_res_blocks"], quantizer, dd["resolution"])
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def rules(levels: int) -> list[Rule | Drop]:
    """Decoder levels are stored from full resolution down, ours run from the lowest up."""
    out: list[Rule | Drop] = [
        Drop(r"loss\..*", "discriminator and LPIPS of the training"),
        Rule(r"quantize\.embedding\.weight", "quantizer.codebook"),
        Rule(r"(quant_conv|post_quant_conv)\.(weight|bias)", r"\1.\2"),
        Rule(r"(encoder|decoder)\.(conv_in|norm_out|conv_out)\.(weight|bias)", r"\1.\2.\3"),
    ]
    for i in range(levels):
        out += level(rf"encoder\.down\.{i}", f"encoder.levels.{i}")
        out += level(rf"decoder\.up\.{i}", f"decoder.levels.{levels - 1 - i}")
    for side in ("encoder", "decoder"):
        out += res_block(rf"{side}\.mid\.block_1", f"{side}.mid.0")
        out += attention(rf"{side}\.mid\.attn_1", f"{side}.mid.1")
        out += res_block(rf"{side}\.mid\.block_2", f"{side}.mid.2")
    return out


def level(theirs: str, ours: str) -> list[Rule]:
    """Rules for the blocks of one resolution."""
    return [
        *res_block(theirs + r"\.block\.(?P<j>\d+)", ours + r".blocks.\g<j>"),
        *attention(theirs + r"\.attn\.(?P<j>\d+)", ours + r".attentions.\g<j>"),
        Rule(theirs + r"\.(?:downsample|upsample)\.conv\.(weight|bias)", ours + r".resample.conv.\1"),
    ]
