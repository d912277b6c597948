"""X-Codec (arXiv 2408.17175): `xcodec_*.pth` of ZhenYe234/xcodec, or a transformers folder (hf-audio/xcodec-*).

The speech model (HuBERT base) is in the file and becomes part of the tokenizer.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from mmtok.importers import seanet
from mmtok.importers.dac import package_rules, strides, transformers_rules
from mmtok.importers.encodec import DEPTH
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply
from mmtok.nn.speech_features import hubert_key, hubert_sizes
from mmtok.nn.wav2vec2 import fold_position_conv

SYSTEMS = ("xcodec", "xcodec_original")
TEACHER = "semantic_model."
DEPTHS = (1, 2, 3, 4, 8)  # codebooks at the published 0.5, 1, 1.5, 2 and 4 kbps


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; heads of the speech model from the config, or one for every 64 channels."""
    transformers = "acoustic_encoder.conv1.weight" in state
    stem, last, down, up, width, semantic = (
        ("acoustic_encoder.conv1.weight", "acoustic_encoder.conv2.weight",
         r"acoustic_encoder\.block\.(\d+)\.conv1\.weight", r"acoustic_decoder\.block\.(\d+)\.conv_t1\.weight",
         "acoustic_decoder.conv1.weight", "encoder_semantic.conv.weight")
        if transformers else
        ("encoder.block.0.weight_v", "fc_post2.weight", r"encoder\.block\.(\d+)\.block\.4\.weight_v",
         r"decoder_2\.model\.(\d+)\.block\.1\.weight_v", "decoder_2.model.0.weight_v",
         "encoder_semantic.conv.conv.weight")
    )  # fmt: skip
    count, codes, dim = seanet.codebook_sizes(state, CODEBOOK + r"\.embed")
    teacher = {key.removeprefix(TEACHER): value for key, value in state.items() if key.startswith(TEACHER)}
    if not teacher:
        raise ValueError("importer: the file holds no semantic_model: use the published file, which does")
    if any("gru_rel_pos" in key for key in teacher):
        raise ValueError("importer: this file was made with WavLM; only those with HuBERT are read")
    sizes = hubert_sizes(teacher)
    told: Config = published.get("semantic_model") or published.get("semantic_model_config") or {}
    blocks = {m[1] for key in state if (m := re.match(r"encoder_semantic\.conv_blocks\.(\d+)", key))}
    return {
        "normed": not transformers, "width": state[stem].shape[0], "acoustic_dim": state[last].shape[0],
        "strides": strides(state, down), "decoder_width": state[width].shape[0], "decoder_strides": strides(state, up),
        "semantic_dim": state[semantic].shape[0], "semantic_blocks": len(blocks), "num_quantizers": count,
        "codebook_size": codes, "dim": dim, "sample_rate": published.get("sample_rate", 16000),
        "teacher": sizes | {"heads": told.get("num_attention_heads", max(1, sizes["dim"] // 64))},
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; depth drop over the published bandwidths."""
    side = package_rules(r"encoder\.block", "encoder") + package_rules(r"decoder_2\.model", "decoder")
    if not facts["normed"]:
        side = transformers_rules(len(facts["strides"]), "acoustic_")
    mapped = apply(state, [*side, *RULES, *_teacher(state)])
    own = fold_position_conv(mapped.state)
    weight = "frontend.trunk.encoder.pos_conv.0.weight"
    for key in [key for key in mapped.state if key not in own]:  # gain and direction
        theirs = mapped.source.pop(key)
        if key.endswith(("weight_v", "original1")):
            mapped.source[weight] = theirs
        else:
            mapped.dropped[theirs] = "a gain, multiplied into its weight"
    # theirs joins the sound first, ours the features
    sound = facts["acoustic_dim"]
    joined = own["join.weight"]
    own["join.weight"] = torch.cat([joined[:, sound:], joined[:, :sound]], 1)
    seanet.add_usage(own)
    count, path = facts["num_quantizers"], "mmtok.models.audio.semantic"
    adapter = {"dim": facts["semantic_dim"], "blocks": facts["semantic_blocks"]}
    encoder = {"width": facts["width"], "strides": facts["strides"], "dim": sound, "normed": facts["normed"]}
    decoder = {
        "dim": sound, "width": facts["decoder_width"], "strides": facts["decoder_strides"], "normed": facts["normed"],
        "output_padding": True, "tanh": False,
    }
    config: Config = {
        "class_path": f"{path}.SemanticCodec",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.dac.DACEncoder", "init_args": encoder},
            "quantizer": seanet.residual(count, facts["codebook_size"], facts["dim"]),
            "decoder": {"class_path": "mmtok.nn.dac.DACDecoder", "init_args": decoder},
            "adapter": {"class_path": f"{path}.ConvAdapter", "init_args": adapter},
            "sample_rate": facts["sample_rate"],
            "frontend": {"class_path": "mmtok.nn.speech_features.HubertFeatures", "init_args": facts["teacher"]},
            "meaning": {"class_path": f"{path}.ConvAdapter", "init_args": adapter | {"mirrored": True}},
            "tail": {
                "class_path": "mmtok.taildrop.ChoiceTail",
                "init_args": {"choices": [n for n in DEPTHS if n <= count], "coding": DEPTH, "per_batch": True},
            },
        },
    }
    return Converted(config, own, mapped.source, mapped.dropped)


def _teacher(state: dict[str, Tensor]) -> list[Rule | Drop]:
    rules: list[Rule | Drop] = []
    for key in state:
        if key.startswith(TEACHER):
            ours = hubert_key(key.removeprefix(TEACHER))
            theirs = re.escape(key)
            rules.append(
                Drop(theirs, "read while the speech model was trained")
                if ours is None else Rule(theirs, f"frontend.trunk.{ours}")
            )
    return rules


CODEBOOK = r"quantizer\.(?:vq\.layers|quantizers)\.(\d+)\._?codebook"
_LEAF, _CONV = r"\.(?P<leaf>weight|bias)", r"(?:\.conv)?"


def _adapter() -> list[Rule]:
    """Blocks lie flat in our list: before each convolution in the encoder, behind it in the decoder."""
    rules: list[Rule] = []
    for side, ours, first in (("encoder", "adapter", r"conv"), ("decoder", "meaning", r"conv1")):
        rules.append(Rule(rf"{side}_semantic\.{first}{_CONV}{_LEAF}", rf"{ours}.layers.0.\g<leaf>"))
        for block in range(2):
            theirs, at = rf"{side}_semantic\.conv_blocks\.{block}\.", 1 + 3 * block
            conv, units = (at + 2, at) if side == "encoder" else (at, at + 1)
            rules.append(Rule(theirs + rf"conv{_CONV}{_LEAF}", rf"{ours}.layers.{conv}.\g<leaf>"))
            for unit in range(2):
                rules.append(Rule(
                    theirs + rf"res_units\.{unit}\.(?P<part>conv1|conv2){_CONV}{_LEAF}",
                    rf"{ours}.layers.{units + unit}.\g<part>.\g<leaf>",
                ))  # fmt: skip
    return [*rules, Rule(rf"decoder_semantic\.conv2{_CONV}{_LEAF}", r"meaning.layers.7.\g<leaf>")]


RULES: list[Rule | Drop] = [
    *_adapter(),
    *seanet.residual_vq(CODEBOOK, r"quantizer.depths.\1"),
    Rule(r"fc(?:_prior)?" + _LEAF, r"join.\g<leaf>"),
    Rule(r"(?:fc1|fc_post1)" + _LEAF, r"tell.\g<leaf>"),
    Rule(r"(?:fc2|fc_post2)" + _LEAF, r"sound.\g<leaf>"),
]
