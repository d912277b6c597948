"""VAR's multi-scale VQVAE (arXiv 2404.02905): `vae_ch160v4096z32.pth`, a flat state dict, no config file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers import taming
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply
from mmtok.importers.vqgan import all_alive, count, level_widths, vq, vqgan_config

SYSTEMS = ("var_vqvae",)
SCALES = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]  # of the published file


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; scales and strength of phi are those of the only published file."""
    widths = level_widths(state, "encoder.down.{}.block.0")
    channels = state["encoder.conv_in.weight"].shape[0]
    codes, dim = state["quantize.embedding.weight"].shape
    phi = sum(".qresi_ls." in key and "weight" in key for key in state)
    if not phi:
        raise ValueError("importer: no key quantize.quant_resi.qresi_ls.0.weight: not weights of this system")
    return {
        "ch": channels, "ch_mult": [width // channels for width in widths],
        "num_res_blocks": count(state, "encoder.down.0.block.{}"), "z_channels": dim, "codebook_size": codes,
        "patch_nums": SCALES, "share_quant_resi": phi, "quant_resi": 0.5,
        "quant_conv_kernel": state["quant_conv.weight"].shape[-1],
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    levels = len(facts["ch_mult"])
    dim = facts["z_channels"]
    mapped = apply(split_qkv(state), rules(levels))
    mapped.state["quantizer.quantizer.usage"] = all_alive(mapped.state["quantizer.quantizer.codebook"])
    sizes = {
        "z_channels": dim, "channels": facts["ch"], "channel_mult": list(facts["ch_mult"]), "attn_levels": [levels - 1],
    }
    phi = {"dim": dim, "count": facts["share_quant_resi"], "strength": facts["quant_resi"]}
    quantizer = {
        "class_path": "mmtok.quantizers.scales.ScaleResidual",
        "init_args": {
            "quantizer": vq(dim, facts["codebook_size"], l2_norm=False),
            "scales": list(facts["patch_nums"]),
            "phi": {"class_path": "mmtok.quantizers.scales.SharedPhi", "init_args": phi},
        },
    }
    side = facts["patch_nums"][-1] * 2 ** (levels - 1)
    config = vqgan_config(sizes, facts["num_res_blocks"], quantizer, side)
    config["init_args"]["quant_kernel"] = facts["quant_conv_kernel"]
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def split_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fused `qkv` convolutions as three entries each, named `...qkv#q.weight` and so on."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        prefix, fused, leaf = key.partition(".qkv.")
        if fused:
            out |= {f"{prefix}.qkv#{part}.{leaf}": v for part, v in zip("qkv", value.chunk(3), strict=True)}
        else:
            out[key] = value
    return out


def rules(levels: int) -> list[Rule | Drop]:
    """taming's layout with fused attention and other quantizer keys."""
    out: list[Rule | Drop] = [
        Drop(r"quantize\.ema_vocab_hit_SV", "usage counts of the training"),
        Rule(r"quantize\.embedding\.weight", "quantizer.quantizer.codebook"),
        Rule(r"quantize\.quant_resi\.qresi_ls\.(\d+)\.(weight|bias)", r"quantizer.phi.convs.\1.\2"),
    ]
    for i in range(levels):
        out += _attention(rf"encoder\.down\.{i}\.attn\.(?P<j>\d+)", rf"encoder.levels.{i}.attentions.\g<j>")
        out += _attention(
            rf"decoder\.up\.{i}\.attn\.(?P<j>\d+)", rf"decoder.levels.{levels - 1 - i}.attentions.\g<j>"
        )
    for side in ("encoder", "decoder"):
        out += _attention(rf"{side}\.mid\.attn_1", f"{side}.mid.1")
    return [*out, *taming.rules(levels)]


def _attention(theirs: str, ours: str) -> list[Rule]:
    return [Rule(theirs + r"\.qkv#(?P<part>q|k|v)\.(?P<leaf>weight|bias)", ours + r".\g<part>.\g<leaf>")]
