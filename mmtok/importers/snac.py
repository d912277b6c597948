"""SNAC (arXiv 2410.14411): folders `snac_{24,32,44}khz` with config.json and pytorch_model.bin."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.dac import factorised, factorised_rules, package_rules
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply
from mmtok.importers.seanet import add_usage, weight_normed

SYSTEMS = ("snac", "snac_attention")


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """The published config; it holds everything."""
    names = (
        "sampling_rate", "encoder_dim", "encoder_rates", "decoder_dim", "decoder_rates", "attn_window_size",
        "codebook_size", "codebook_dim", "vq_strides", "noise", "depthwise", "latent_dim",
    )  # fmt: skip
    missing = [name for name in names[:-1] if name not in published]
    if missing:
        raise ValueError(f"importer: config.json lacks {', '.join(missing)}: put the published one beside the weights")
    latent = published.get("latent_dim") or published["encoder_dim"] * 2 ** len(published["encoder_rates"])
    return {name: published[name] for name in names[:-1]} | {"latent_dim": latent}


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    mapped = apply(state, RULES)
    add_usage(mapped.state)
    shared = {"depthwise": facts["depthwise"], "window": facts["attn_window_size"]}
    latent = facts["latent_dim"]
    encoder = shared | {"width": facts["encoder_dim"], "strides": facts["encoder_rates"], "dim": latent}
    decoder = shared | {
        "dim": latent, "width": facts["decoder_dim"], "strides": facts["decoder_rates"], "noise": facts["noise"],
        "output_padding": True,
    }
    quantizers = [factorised(facts["codebook_size"], facts["codebook_dim"], latent, True) for _ in facts["vq_strides"]]
    config: Config = {
        "class_path": "mmtok.models.audio.snac.SNAC",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.dac.DACEncoder", "init_args": encoder},
            "quantizer": {
                "class_path": "mmtok.quantizers.strided.StridedResidual",
                "init_args": {"quantizers": quantizers, "strides": facts["vq_strides"]},
            },
            "decoder": {"class_path": "mmtok.nn.dac.DACDecoder", "init_args": decoder},
            "sample_rate": facts["sampling_rate"],
            "window": facts["attn_window_size"],
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


_STAGE = r"(?P<side>encoder|decoder)\.(?:block|model)\.(?P<i>\d+)"
_AT = r"\g<side>.layers.\g<i>"
RULES: list[Rule | Drop] = [
    Drop(_STAGE + r"\.rel_pos\.inv_freq", "computed from the width of a head"),
    *package_rules(),
    Rule(_STAGE + r"\.norm\.(?P<leaf>weight|bias)", _AT + r".norm.\g<leaf>"),
    Rule(_STAGE + r"\.to_(?P<part>qkv|out)\.weight", _AT + r".\g<part>.weight"),
    *weight_normed(_STAGE + r"\.block\.(?P<j>\d+)\.linear", _AT + r".layers.\g<j>.linear"),
    *factorised_rules(r"quantizer\.quantizers\.(?P<n>\d+)", r"quantizer.levels.\g<n>"),
]
