"""LARP (arXiv 2410.21264): `model.safetensors` and `config.json` of LARP-L-long-tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, flatten
from mmtok.importers.vqgan import all_alive

SYSTEMS = ("larp",)
HEADS, PRIOR_HEADS = 12, 6  # of the released sizes


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes off the weights; heads and clip from the published constructor arguments."""
    arguments = published.get("constructor", published)
    patch = tuple(state["x_embedder.proj.weight"].shape[2:])
    prior = "prior_model.pos_emb" in state
    return {
        "patch": list(patch), "dim": state["bottleneck.in_linear.weight"].shape[0],
        "width": state["bottleneck.in_linear.weight"].shape[1],
        "codebook_size": state["bottleneck.regularizer.embedding.weight"].shape[0],
        "latents": state["encoder_latent_query_embed"].shape[-2],
        "image_size": arguments.get("input_size", 128), "frames": arguments.get("frame_num", 16),
        "encoder_layers": layers(state, "encoder.blocks"), "decoder_layers": layers(state, "decoder.blocks"),
        "encoder_heads": arguments.get("encoder_num_heads", HEADS),
        "decoder_heads": arguments.get("decoder_num_heads", HEADS),
        "prior": {
            "length": state["prior_model.pos_emb"].shape[1], "width": state["prior_model.pos_emb"].shape[2],
            "layers": layers(state, "prior_model.blocks"),
            "heads": published.get("prior", {}).get("n_head", PRIOR_HEADS),
        } if prior else None,
    }  # fmt: skip


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; positions are fixed tables that we make ourselves."""
    mapped = apply(fuse(state), RULES)
    mapped.state["quantizer.usage"] = all_alive(mapped.state["quantizer.codebook"])
    config = {"class_path": "mmtok.models.video.larp.LARP", "init_args": networks(facts, facts["frames"], 1)}
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def networks(facts: dict[str, Any], frames: int, blocks: int) -> Config:
    """Constructor arguments of the tokenizer; `frames` of a block, `blocks` of a segment."""
    shared = {
        "dim": facts["dim"], "num_latents": facts["latents"] // blocks, "frames": frames, "blocks": blocks,
        "image_size": facts["image_size"], "patch": facts["patch"], "width": facts["width"],
    }
    args: Config = {
        side: {
            "class_path": f"mmtok.nn.latent_query.LatentQuery{side.capitalize()}",
            "init_args": shared | {"layers": facts[f"{side}_layers"], "heads": facts[f"{side}_heads"]},
        }
        for side in ("encoder", "decoder")
    }
    args["quantizer"] = {
        "class_path": "mmtok.quantizers.stochastic.StochasticVQ",
        "init_args": {"dim": facts["dim"], "codebook_size": facts["codebook_size"]},
    }
    if facts["prior"] is not None:
        prior = {"dim": facts["dim"], **facts["prior"]}
        args["prior"] = {"class_path": "mmtok.models.video.prior.CodePrior", "init_args": prior}
    return args


def layers(state: dict[str, Tensor], prefix: str) -> int:
    """Number of blocks under a prefix."""
    return len({key[len(prefix) :].split(".")[1] for key in state if key.startswith(prefix + ".")})


def fuse(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The prior's three projections as one tensor, under the name `qkv`."""
    out = dict(state)
    for key in [key for key in state if ".attn.query." in key]:
        parts = [key.replace(".query.", f".{name}.") for name in ("query", "key", "value")]
        out[key.replace(".query.", ".qkv.")] = torch.cat([out.pop(part) for part in parts])
    return out


_SIDE, _OURS = r"(?P<side>encoder|decoder|scorer)\.blocks\.(?P<i>\d+)", r"\g<side>.transformer.layers.\g<i>"
_PRIOR, _MINE = r"prior_model\.blocks\.(?P<i>\d+)", r"prior.transformer.layers.\g<i>"
_LEAF = r"\.(?P<leaf>weight|bias)"
RULES: list[Rule | Drop] = [
    Drop(r"encoder_patch_pe|decoder_latent_pe|decoder_patch_query_embed", "fixed table of sines, made anew"),
    Rule(r"encoder_latent_query_embed", "encoder.latents"),
    Rule(r"decoder_patch_query_token_type_embed", "decoder.query", flatten),
    Rule(r"x_embedder\.proj\.(weight|bias)", r"encoder.patch_embed.\1"),
    Rule(r"bottleneck\.in_linear\.(weight|bias)", r"encoder.project.\1"),
    Rule(r"bottleneck\.out_linear\.(weight|bias)", r"decoder.embed.\1"),
    Rule(r"bottleneck\.regularizer\.embedding\.weight", "quantizer.codebook"),
    Rule(r"final_layer\.norm_final\.(weight|bias)", r"decoder.norm.\1"),
    Rule(r"final_layer\.linear\.(weight|bias)", r"decoder.pixels.\1"),
    Rule(_SIDE + r"\.(?P<norm>norm1|norm2)" + _LEAF, _OURS + r".\g<norm>.\g<leaf>"),
    Rule(_SIDE + r"\.attn\.qkv\.weight", _OURS + ".qkv.weight"),
    Rule(_SIDE + r"\.attn\.proj" + _LEAF, _OURS + r".out.\g<leaf>"),
    Rule(_SIDE + r"\.mlp\.fc1" + _LEAF, _OURS + r".mlp.up.\g<leaf>"),
    Rule(_SIDE + r"\.mlp\.fc2" + _LEAF, _OURS + r".mlp.down.\g<leaf>"),
    Rule(r"prior_model\.pos_emb", "prior.positions", lambda value: value[0]),
    Rule(r"prior_model\.input_proj\.(weight|bias)", r"prior.embed.\1"),
    Rule(r"prior_model\.ln_f\.(weight|bias)", r"prior.norm.\1"),
    Rule(r"prior_model\.head\.(weight|bias)", r"prior.head.\1"),
    Rule(_PRIOR + r"\.ln(?P<n>1|2)" + _LEAF, _MINE + r".norm\g<n>.\g<leaf>"),
    Rule(_PRIOR + r"\.attn\.qkv" + _LEAF, _MINE + r".qkv.\g<leaf>"),
    Rule(_PRIOR + r"\.attn\.proj" + _LEAF, _MINE + r".out.\g<leaf>"),
    Rule(_PRIOR + r"\.mlp\.0" + _LEAF, _MINE + r".mlp.up.\g<leaf>"),
    Rule(_PRIOR + r"\.mlp\.2" + _LEAF, _MINE + r".mlp.down.\g<leaf>"),
]
