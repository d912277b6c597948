"""WavTokenizer (arXiv 2408.16532): the Lightning files of novateur/WavTokenizer*; no config is needed."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from mmtok.importers import seanet
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply

SYSTEMS = ("wavtokenizer",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; everything released works at 24 kHz."""
    sizes = seanet.sizes(state, "feature_extractor.encodec.encoder.model")
    count, codes, dim = seanet.codebook_sizes(state, CODEBOOK + r"\.embed")
    if count != 1:
        raise ValueError(f"importer: WavTokenizer has one codebook, this file {count}")
    return {
        "seanet": sizes | {"causal": False}, "codebook_size": codes, "dim": dim,
        "vocos": vocos_sizes(state), "sample_rate": published.get("sample_rate", 24000),
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    hop = 1
    for ratio in facts["seanet"]["ratios"]:
        hop *= ratio
    mapped = apply(state, RULES)
    seanet.add_usage(mapped.state)
    config: Config = {
        "class_path": "mmtok.models.audio.codec.WaveCodec",
        "init_args": {
            "encoder": seanet.encoder(facts["seanet"]),
            "quantizer": seanet.codebook(facts["codebook_size"], facts["dim"], kmeans_steps=200),
            "decoder": {"class_path": "mmtok.nn.vocos.VocosDecoder", "init_args": facts["vocos"] | {"hop": hop}},
            "sample_rate": facts["sample_rate"],
            "end": "layers",
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def vocos_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of our VocosDecoder, but the hop."""
    embed, norm = state["backbone.embed.weight"], state.get("backbone.norm.scale.weight")
    return {
        "dim": embed.shape[1], "width": embed.shape[0], "hidden": state["backbone.convnext.0.pwconv1.weight"].shape[0],
        "layers": len({key.split(".")[2] for key in state if key.startswith("backbone.convnext.")}),
        "n_fft": state["head.out.weight"].shape[0] - 2, "conditions": None if norm is None else norm.shape[0],
        "position": any(re.match(r"backbone\.pos_net\.", key) for key in state),
    }


CODEBOOK = r"feature_extractor\.encodec\.quantizer\.vq\.layers\.\d+\._codebook"
_NORM = r"\.(?:weight|scale\.weight)"
_BLOCK, _OURS = r"backbone\.convnext\.(?P<n>\d+)", r"decoder.blocks.\g<n>"
VOCOS: list[Rule | Drop] = [
    Drop(r"head\.istft\.window", "computed: a Hann window"),
    Rule(r"backbone\.embed\.(weight|bias)", r"decoder.embed.conv.\1"),
    Rule(rf"backbone\.norm{_NORM}", "decoder.norm.scale"),
    Rule(r"backbone\.norm\.(?:bias|shift\.weight)", "decoder.norm.shift"),
    Rule(r"backbone\.final_layer_norm\.weight", "decoder.final.scale"),
    Rule(r"backbone\.final_layer_norm\.bias", "decoder.final.shift"),
    Rule(_BLOCK + r"\.dwconv\.(?P<leaf>weight|bias)", _OURS + r".depthwise.conv.\g<leaf>"),
    Rule(_BLOCK + rf"\.norm{_NORM}", _OURS + ".norm.scale"),
    Rule(_BLOCK + r"\.norm\.(?:bias|shift\.weight)", _OURS + ".norm.shift"),
    Rule(_BLOCK + r"\.pwconv1\.(?P<leaf>weight|bias)", _OURS + r".up.\g<leaf>"),
    Rule(_BLOCK + r"\.pwconv2\.(?P<leaf>weight|bias)", _OURS + r".down.\g<leaf>"),
    Rule(_BLOCK + r"\.gamma", _OURS + ".scale"),
    Rule(r"backbone\.pos_net\.(\d+)\.proj_out\.(weight|bias)", r"decoder.position.layers.\1.out.\2"),
    Rule(r"backbone\.pos_net\.([\w.]+)", r"decoder.position.layers.\1"),
    Rule(r"head\.out\.(weight|bias)", r"decoder.head.linear.\1"),
]
RULES: list[Rule | Drop] = [
    Drop(r"feature_extractor\.encodec\.decoder\..+", "saved with the encoder, but never used"),
    Drop(r"(?:multiperioddisc|multiresddisc|dac|dacdiscriminator|melspec_loss)\..+", "discriminators and losses"),
    *seanet.network(r"feature_extractor\.encodec\.encoder\.model", "encoder.layers"),
    *seanet.residual_vq(CODEBOOK, "quantizer"),
    *VOCOS,
]
