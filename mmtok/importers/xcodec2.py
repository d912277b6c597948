"""X-Codec-2 (arXiv 2502.04128): a transformers folder (HKUSTAudio/xcodec2-hf), or the Lightning file of
HKUSTAudio/xcodec2.

The first holds the speech model (16 layers of w2v-BERT 2.0), which becomes part of the tokenizer, but not what told the
features from the codes in training. The second holds that, and the speech model when it was saved with it; without one,
every batch has to bring features.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from mmtok.importers.dac import strides, transformers_rules
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply
from mmtok.importers.seanet import weight_normed

SYSTEMS = ("xcodec2", "xcodec2_original")
HEARD = 16  # layers of the speech model that are heard


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; levels, heads and hop of the released model where no config tells them."""
    native = "acoustic_encoder.conv1.weight" in state
    stem, last, down, embed, sound, head, up, project, semantic = (
        ("acoustic_encoder.conv1.weight", "acoustic_encoder.conv2.weight",
         r"acoustic_encoder\.block\.(\d+)\.conv1\.weight", "acoustic_decoder.embed.weight",
         "acoustic_decoder.fc.weight", "acoustic_decoder.head.linear.bias", "acoustic_decoder.layers.0.mlp.fc1.weight",
         "quantizer.project_in.weight", "semantic_adapter.conv1.weight")
        if native else
        ("CodecEnc.conv_blocks.0.weight_v", "CodecEnc.conv_final_block.1.weight_v",
         r"CodecEnc\.conv_blocks\.(\d+)\.block\.4\.weight_v", "generator.backbone.embed.weight", "fc_post_a.weight",
         "generator.head.out.bias", "generator.backbone.transformers.0.mlp.fc1.weight",
         "generator.quantizer.project_in.weight", "SemanticEncoder_module.initial_conv.weight")
    )  # fmt: skip
    ratios = strides(state, down)
    dims, latent = state[project].shape
    levels: list[int] = published.get("quantization_levels") or published.get("levels") or [4] * dims
    if len(levels) != dims:
        raise ValueError(f"importer: {dims} dimensions are quantized, the config names {len(levels)} levels")
    width = state[embed].shape[0]
    stack = r"acoustic_decoder\.layers\.(\d+)\..+" if native else r"generator\.backbone\.transformers\.(\d+)\..+"
    prefix = "semantic_encoder." if native else "semantic_model."
    teacher = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {
        "native": native, "width": state[stem].shape[0], "acoustic_dim": state[last].shape[0], "strides": ratios,
        "latent": latent, "levels": list(levels), "semantic_dim": state[semantic].shape[1],
        "meaning": "fc_post_s.weight" in state, "sound": state[sound].shape[0],
        "decoder": {
            "width": width, "layers": _count(state, stack), "hidden": state[up].shape[0],
            "heads": published.get("num_attention_heads", published.get("heads", max(1, width // 64))),
            "hop": math.prod(ratios), "n_fft": len(state[head]) - 2,
        },
        "sample_rate": published.get("sampling_rate", published.get("sample_rate", 16000)),
        "teacher": _teacher(teacher, published) if teacher else None,
    }  # fmt: skip


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    stages, path = len(facts["strides"]), "mmtok.models.audio.semantic"
    heard = 0 if facts["teacher"] is None else facts["teacher"]["layers"]
    if facts["native"]:
        mapped = apply(_fused(state), [*transformers_rules(stages, "acoustic_"), *NATIVE, *_teacher_rules(heard)])
    else:
        mapped = apply(state, [*_encoder(stages), *ORIGINAL, *_teacher_rules(heard)])
    semantic = facts["semantic_dim"]
    adapter = {"inputs": semantic, "outputs": semantic, "hidden": semantic}
    fsq = {"levels": facts["levels"], "double_bound": True}
    quantizer = {
        "quantizer": {"class_path": "mmtok.quantizers.fsq.FSQ", "init_args": fsq}, "dim": facts["latent"],
        "weight_norm": False,
    }
    encoder = {
        "width": facts["width"], "strides": facts["strides"], "dim": facts["acoustic_dim"], "alias_free": True,
        "normed": not facts["native"],
    }
    config: Config = {
        "class_path": f"{path}.SemanticCodec",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.dac.DACEncoder", "init_args": encoder},
            "quantizer": {"class_path": "mmtok.quantizers.projected.Projected", "init_args": quantizer},
            "decoder": {
                "class_path": "mmtok.nn.vocos_transformer.VocosTransformerDecoder",
                "init_args": facts["decoder"] | {"dim": facts["sound"]},
            },
            "adapter": {"class_path": f"{path}.ResidualAdapter", "init_args": adapter},
            "sample_rate": facts["sample_rate"],
        },
    }
    if facts["teacher"] is not None:
        config["init_args"]["frontend"] = {
            "class_path": "mmtok.nn.w2v_bert.W2vBertFeatures", "init_args": facts["teacher"]
        }
    if facts["meaning"]:
        config["init_args"]["meaning"] = {
            "class_path": f"{path}.ResidualAdapter", "init_args": adapter | {"mirrored": True}
        }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _teacher(state: dict[str, Tensor], published: Config) -> dict[str, Any]:
    told: Config = published.get("semantic_model") or published.get("semantic_model_config") or {}
    layer = "encoder.layers.0."
    distances, size = state[f"{layer}self_attn.distance_embedding.weight"].shape
    dim = len(state[f"{layer}final_layer_norm.weight"])
    right = told.get("right_max_position_embeddings", 8)
    return {
        "dim": dim, "heads": dim // size, "layers": min(HEARD, _count(state, r"encoder\.layers\.(\d+)\..+")),
        "hidden": len(state[f"{layer}ffn1.intermediate_dense.bias"]),
        "inputs": len(state["feature_projection.layer_norm.weight"]), "left": distances - 1 - right, "right": right,
        "kernel": state[f"{layer}conv_module.depthwise_conv.weight"].shape[-1],
    }


def _teacher_rules(heard: int) -> list[Rule | Drop]:
    side = r"semantic_(?:encoder|model)\."
    layers = "|".join(str(i) for i in range(heard))
    return [
        Drop(side + r"masked_spec_embed", "read while the speech model was trained"),
        Rule(side + rf"(?P<key>(?:feature_projection|encoder\.layers\.(?:{layers}))\..+)", r"frontend.trunk.\g<key>"),
        Drop(side + r".+", "behind the layer that is heard"),
    ]


def _fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three projections of an attention as one, under the name of the queries'."""
    out = dict(state)
    for key in state:
        if key.startswith("acoustic_decoder.") and key.endswith(".q_proj.weight"):
            out[key] = torch.cat([out.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"])
    return out


def _encoder(stages: int) -> list[Rule]:
    act, at = r"\.(?P<leaf>act\.(?:alpha|beta))", r"encoder.layers.\g<i>"
    stage, unit = r"CodecEnc\.conv_blocks\.(?P<i>\d+)", r"\.block\.(?P<j>\d+)"
    inner = unit + r"\.block\.(?P<k>\d+)"
    last = "encoder.layers."
    return [
        *weight_normed(stage, at),
        *weight_normed(stage + unit, rf"{at}.layers.\g<j>"),
        *weight_normed(stage + inner, rf"{at}.layers.\g<j>.layers.\g<k>"),
        Rule(stage + unit + act, rf"{at}.layers.\g<j>.\g<leaf>"),
        Rule(stage + inner + act, rf"{at}.layers.\g<j>.layers.\g<k>.\g<leaf>"),
        Rule(r"CodecEnc\.conv_final_block\.0" + act, rf"{last}{stages + 1}.\g<leaf>"),
        *weight_normed(r"CodecEnc\.conv_final_block\.1", f"{last}{stages + 2}"),
    ]


def _count(state: dict[str, Tensor], pattern: str) -> int:
    return len({m[1] for key in state if (m := re.fullmatch(pattern, key))})


_LEAF = r"\.(?P<leaf>weight|bias)"
_NETS = ((r"prior_net", "before"), (r"post_net", "after"))


def _decoder(theirs: str, stack: str, names: dict[str, str], final: str, head: str) -> list[Rule]:
    layer = rf"{stack}\.(?P<n>\d+)\."
    return [
        Rule(theirs + r"\.embed" + _LEAF, r"decoder.embed.\g<leaf>"),
        *(
            Rule(rf"{theirs}\.{net}\.(?P<n>\d+)\.(?P<part>\w+){_LEAF}", rf"decoder.{ours}.\g<n>.\g<part>.\g<leaf>")
            for net, ours in _NETS
        ),
        *(Rule(layer + name + r"\.weight", rf"decoder.layers.\g<n>.{ours}.weight") for name, ours in names.items()),
        Rule(rf"{theirs}\.{final}\.weight", "decoder.final.scale"),
        Rule(rf"{theirs}\.{final}\.bias", "decoder.final.shift"),
        Rule(head + _LEAF, r"decoder.head.linear.\g<leaf>"),
    ]


_PROJECT = r"(?:generator\.)?quantizer\.(?P<way>project_in|project_out)" + _LEAF
NATIVE: list[Rule] = [
    *_decoder(
        r"acoustic_decoder", r"acoustic_decoder\.layers",
        {r"self_attn\.q_proj": "qkv", r"self_attn\.o_proj": "out", r"mlp\.fc1": "up", r"mlp\.fc2": "down",
         "input_layernorm": "norm1", "post_attention_layernorm": "norm2"},
        "norm", r"acoustic_decoder\.head\.linear",
    ),
    Rule(r"semantic_adapter\.conv1\.weight", "adapter.first.weight"),
    Rule(r"semantic_adapter\.conv2" + _LEAF, r"adapter.inner1.\g<leaf>"),
    Rule(r"semantic_adapter\.conv3" + _LEAF, r"adapter.inner2.\g<leaf>"),
    Rule(r"semantic_adapter\.conv4\.weight", "adapter.last.weight"),
    Rule(r"fc_encoder" + _LEAF, r"join.\g<leaf>"),
    Rule(r"acoustic_decoder\.fc" + _LEAF, r"sound.\g<leaf>"),
    Rule(_PROJECT, r"quantizer.\g<way>.\g<leaf>"),
]  # fmt: skip


def _adapters() -> list[Rule]:
    rules = []
    for theirs, ours in (("SemanticEncoder_module", "adapter"), ("SemanticDecoder_module", "meaning")):
        rules += [
            Rule(rf"{theirs}\.initial_conv\.weight", f"{ours}.first.weight"),
            Rule(rf"{theirs}\.residual_blocks\.1{_LEAF}", rf"{ours}.inner1.\g<leaf>"),
            Rule(rf"{theirs}\.residual_blocks\.3{_LEAF}", rf"{ours}.inner2.\g<leaf>"),
            Rule(rf"{theirs}\.final_conv\.weight", f"{ours}.last.weight"),
        ]
    return rules


ORIGINAL: list[Rule | Drop] = [
    Drop(r".+\.(?:downsample\.lowpass|upsample)\.filter", "computed: Kaiser-windowed sinc"),
    Drop(r"generator\.head\.istft\.window", "computed: a Hann window"),
    Drop(r"(?:model_spk|mpd|spec_disc|discriminator|spec_discriminator|criteria)\..+", "discriminators and losses"),
    *_decoder(
        r"generator\.backbone", r"generator\.backbone\.transformers",
        {r"att\.c_attn": "qkv", r"att\.c_proj": "out", r"mlp\.fc1": "up", r"mlp\.fc2": "down",
         "att_norm": "norm1", "ffn_norm": "norm2"},
        "final_layer_norm", r"generator\.head\.out",
    ),
    *_adapters(),
    Rule(r"fc_prior" + _LEAF, r"join.\g<leaf>"),
    Rule(r"fc_post_a" + _LEAF, r"sound.\g<leaf>"),
    Rule(r"fc_post_s" + _LEAF, r"tell.\g<leaf>"),
    Rule(_PROJECT, r"quantizer.\g<way>.\g<leaf>"),
]  # fmt: skip
