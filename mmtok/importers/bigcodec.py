"""BigCodec (arXiv 2409.05377): `bigcodec.pt`, state dicts `CodecEnc` and `generator`; no config file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.dac import factorised, factorised_rules, package_rules, strides
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply
from mmtok.importers.seanet import add_usage

SYSTEMS = ("bigcodec",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; the released model works at 16 kHz."""
    codes, dim = state["generator.quantizer.layers.0._codebook.weight"].shape
    return {
        "width": state["CodecEnc.block.0.weight_v"].shape[0],
        "dim": state["generator.quantizer.layers.0.out_proj.weight_v"].shape[0],
        "decoder_width": state["generator.model.0.weight_v"].shape[0],
        "strides": strides(state, r"CodecEnc\.block\.(\d+)\.block\.4\.weight_v"),
        "decoder_strides": strides(state, r"generator\.model\.(\d+)\.block\.1\.weight_v"),
        "lstm": len([key for key in state if key.startswith("CodecEnc.") and ".lstm.weight_ih_l" in key]),
        "codebook_size": codes, "codebook_dim": dim, "sample_rate": published.get("sample_rate", 16000),
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    mapped = apply(state, RULES)
    add_usage(mapped.state)
    shared = {"dim": facts["dim"], "alias_free": True, "lstm": facts["lstm"]}
    encoder = shared | {"width": facts["width"], "strides": facts["strides"]}
    decoder = shared | {
        "width": facts["decoder_width"], "strides": facts["decoder_strides"], "output_padding": True
    }
    config: Config = {
        "class_path": "mmtok.models.audio.codec.WaveCodec",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.dac.DACEncoder", "init_args": encoder},
            "quantizer": factorised(facts["codebook_size"], facts["codebook_dim"], facts["dim"], True),
            "decoder": {"class_path": "mmtok.nn.dac.DACDecoder", "init_args": decoder},
            "sample_rate": facts["sample_rate"],
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


RULES: list[Rule | Drop] = [
    Drop(r".+\.(?:downsample\.lowpass|upsample)\.filter", "computed: Kaiser-windowed sinc"),
    Rule(r"CodecEnc\.block\.(\d+)\.lstm\.(\w+)", r"encoder.layers.\1.lstm.\2"),
    Rule(r"generator\.model\.(\d+)\.lstm\.(\w+)", r"decoder.layers.\1.lstm.\2"),
    *package_rules(r"CodecEnc\.block", "encoder"),
    *package_rules(r"generator\.model", "decoder"),
    *factorised_rules(r"generator\.quantizer\.layers\.0", "quantizer"),
]
