"""Mimi (arXiv 2410.00037): `tokenizer-*-checkpoint125.safetensors` of moshi (no config), or a transformers folder."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from mmtok.importers import seanet
from mmtok.importers.encodec import DEPTH
from mmtok.importers.keymap import Config, Converted, Rule, apply, linear

SYSTEMS = ("mimi", "mimi_moshi")
MOSHI: Config = {"sample_rate": 24000, "transformer": {"num_heads": 8, "context": 250}}


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; heads, window and rate from the config, or those of the released model."""
    transformers = any(key.startswith("encoder.layers.") for key in state)
    sizes = seanet.sizes(state, "encoder.layers" if transformers else "encoder.model")
    if transformers:
        rate, heads = published["sampling_rate"], published["num_attention_heads"]
        window = published["sliding_window"]
        hidden = state["encoder_transformer.layers.0.mlp.fc1.weight"].shape[0]
    else:
        found = MOSHI | published
        rate, heads, window = found["sample_rate"], found["transformer"]["num_heads"], found["transformer"]["context"]
        hidden = state["encoder_transformer.transformer.layers.0.linear1.weight"].shape[0]
    count, codes, dim = seanet.codebook_sizes(state, CODEBOOK + r"\.(embed_sum|embedding_sum)")
    layers = {m[1] for key in state if (m := re.match(r"encoder_transformer\.(?:transformer\.)?layers\.(\d+)", key))}
    step = next(v.shape[-1] // 2 for key, v in state.items() if key.startswith("downsample."))
    names = ("dim", "n_filters", "ratios", "n_residual", "kernel", "last_kernel", "residual_kernel", "compress")
    return {
        "networks": {name: sizes[name] for name in names}
        | {"layers": len(layers), "heads": heads, "hidden": hidden, "window": window, "step": step},
        "num_quantizers": count, "codebook_size": codes, "codebook_dim": dim, "sample_rate": rate,
        "end": "layers" if transformers else "zeros", "interleaved": not transformers,
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    heads = facts["networks"]["heads"]
    mapped = apply(_fused(state), _rules(heads if facts["interleaved"] else None))
    for key in [key for key in mapped.state if key.endswith(".ema_sums")]:
        stem = key.removesuffix("ema_sums")
        mapped.state[f"{stem}codebook"] = mapped.state[key] / mapped.state[f"{stem}ema_counts"].clamp(min=1e-5)[:, None]
    seanet.add_usage(mapped.state)
    codes, dim = facts["codebook_size"], facts["codebook_dim"]
    rest = [seanet.codebook(codes, dim) for _ in range(facts["num_quantizers"] - 1)]
    config: Config = {
        "class_path": "mmtok.models.audio.codec.WaveCodec",
        "init_args": {
            "encoder": {"class_path": "mmtok.models.audio.mimi.MimiEncoder", "init_args": facts["networks"]},
            "quantizer": {
                "class_path": "mmtok.quantizers.split.SplitResidual",
                "init_args": {
                    "first": _projected(seanet.codebook(codes, dim), facts["networks"]["dim"]),
                    "rest": _projected(
                        {"class_path": "mmtok.quantizers.residual.Residual", "init_args": {"quantizers": rest}},
                        facts["networks"]["dim"],
                    ),
                },
            },
            "decoder": {"class_path": "mmtok.models.audio.mimi.MimiDecoder", "init_args": facts["networks"]},
            "sample_rate": facts["sample_rate"],
            "tail": {"class_path": "mmtok.taildrop.UniformTail", "init_args": {"coding": DEPTH, "per_batch": True}},
            "end": facts["end"],
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _projected(quantizer: Config, dim: int) -> Config:
    arguments = {"quantizer": quantizer, "dim": dim, "weight_norm": False, "bias": False}
    return {"class_path": "mmtok.quantizers.projected.Projected", "init_args": arguments}


def _fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three projections that transformers keeps apart as one tensor, named by the three."""
    out = dict(state)
    for key in [key for key in state if key.endswith(".q_proj.weight")]:
        parts = [key.replace(".q_proj.", f".{name}_proj.") for name in "qkv"]
        out[key.replace(".q_proj.", ".qkv_proj.")] = torch.cat([out.pop(part) for part in parts])
    return out


def _halves(heads: int) -> Any:
    """Rows of q and k whose neighbouring channels are paired -> rows whose halves are paired; v as it is."""

    def permute(value: Tensor) -> Tensor:
        q, k, v = value.chunk(3)
        q, k = (part.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2) for part in (q, k))
        return torch.cat([q, k, v])

    return permute


CODEBOOK = (
    r"quantizer\.(?:rvq_(?P<m>first|rest)\.vq|(?P<h>semantic|acoustic)_residual_vector_quantizer)"
    r"\.layers\.(?P<n>\d+)\._?codebook"
)


def _rules(heads: int | None) -> list[Rule]:
    layer, ours = (
        r"(?P<side>encoder|decoder)_transformer\.(?:transformer\.)?layers\.(?P<n>\d+)",
        r"\g<side>.transformer.layers.\g<n>",
    )
    named = {
        r"(?:norm1|input_layernorm)\.(?P<leaf>weight|bias)": r"norm1.\g<leaf>",
        r"(?:norm2|post_attention_layernorm)\.(?P<leaf>weight|bias)": r"norm2.\g<leaf>",
        r"self_attn\.(?:out_projs\.0|o_proj)\.weight": "out.weight",
        r"(?:linear1|mlp\.fc1)\.weight": "up.weight",
        r"(?:linear2|mlp\.fc2)\.weight": "down.weight",
        r"(?:layer_scale_1|self_attn_layer_scale)\.scale": "scale1",
        r"(?:layer_scale_2|mlp_layer_scale)\.scale": "scale2",
    }
    rules = [
        *seanet.network(r"(?P<side>encoder|decoder)\.(?:model|layers)", r"\g<side>.seanet.layers"),
        *(Rule(rf"{layer}\.{theirs}", f"{ours}.{own}") for theirs, own in named.items()),
        Rule(layer + r"\.self_attn\.in_projs\.0\.weight", f"{ours}.qkv.weight", _halves(heads) if heads else None),
        Rule(layer + r"\.self_attn\.qkv_proj\.weight", f"{ours}.qkv.weight"),
        Rule(r"downsample\.(?:conv\.)+weight", "encoder.down.conv.weight"),
        Rule(r"upsample\.(?:convtr\.)*(?:conv\.)?weight", "decoder.up.conv.weight"),
    ]
    leaves = {
        "embed(?:ding)?_sum": ("ema_sums", None), "cluster_usage": ("ema_counts", None),
        "_?initialized": ("initialized", seanet.flag),
    }
    for theirs, part in {"rvq_first": "first", "semantic_residual_vector_quantizer": "first",
                         "rvq_rest": "rest", "acoustic_residual_vector_quantizer": "rest"}.items():
        for way in ("in", "out"):
            project = rf"quantizer\.{theirs}\.{way}put_proj\.weight"
            rules.append(Rule(project, f"quantizer.{part}.project_{way}.weight", linear))
        inner = "quantizer" if part == "first" else r"quantizer.depths.\1"
        at = rf"quantizer\.{theirs}\.(?:vq\.)?layers\.(\d+)\._?codebook"
        for name, (own, transform) in leaves.items():
            rules.append(Rule(rf"{at}\.{name}", f"quantizer.{part}.{inner}.{own}", transform))
    return rules
