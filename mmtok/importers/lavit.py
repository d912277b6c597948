"""LaVIT's dynamic tokenizer (arXiv 2309.04669): the folder `visual_tokenizer` of rain1011/LaVIT-7B-v2.

It holds `eva_vitg_psz14.bin`, `tokenizer_encoder.bin`, and one or both of `tokenizer_decoder.bin` (prompts of Stable
Diffusion 1.5, as in the paper) and `highres_tokenizer_decoder.bin` (of SDXL, added with version 2), which is taken when
both are there. Either one predicts EVA's features from the same codes, and then projects them to prompts. The recipe
image/lavit trains up to the features: projections and pooling are learned with the diffusion model, which is no part of
this package. Names of files become prefixes of keys.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply
from mmtok.importers.timm_vit import depth, first, join_biases, trunk_rules
from mmtok.importers.vqgan import all_alive, vq

SYSTEMS = ("lavit",)
EVA, ENCODER, HIGH, LOW = "eva_vitg_psz14.", "tokenizer_encoder.", "highres_tokenizer_decoder.", "tokenizer_decoder."
WIDE = 88  # channels of a head, everywhere


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights."""
    for prefix in (EVA, ENCODER):
        if not any(key.startswith(prefix) for key in state):
            raise ValueError(f"importer: no {prefix}bin beside the others: import the whole folder visual_tokenizer")
    decoder = HIGH if any(key.startswith(HIGH) for key in state) else LOW
    width, _, patch, _ = state[f"{EVA}patch_embed.proj.weight"].shape
    codes, dim = state[f"{ENCODER}quantize.embedding.weight"].shape
    names = ("unet_proj_1", "unet_proj_2") if decoder == HIGH else ("unet_proj",)
    return {
        "width": width, "patch": patch, "grid": round((state[f"{EVA}pos_embed"].shape[1] - 1) ** 0.5),
        "trunk_layers": depth(state, EVA), "trunk_hidden": len(state[f"{EVA}blocks.0.mlp.fc1.bias"]),
        "layers": depth(state, f"{ENCODER}causal_encoder."), "heads": max(1, width // WIDE),
        "mlp_ratio": 4.3637, "codebook_size": codes, "code_dim": dim, "decoder": decoder,
        "decoder_layers": depth(state, decoder), "num_patches": state[f"{decoder}query_embed"].shape[1],
        "prompt": [len(state[f"{decoder}{name}.bias"]) for name in names],
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    mapped = apply(join_biases(state), _rules(facts["decoder"]))
    mapped.state["quantizer.quantizer.usage"] = all_alive(mapped.state["quantizer.quantizer.codebook"])
    path, dim = "mmtok.models.image.lavit", facts["code_dim"]
    trunk = {
        "width": facts["width"], "layers": facts["trunk_layers"], "heads": facts["heads"], "grid": facts["grid"],
        "patch": facts["patch"], "hidden": facts["trunk_hidden"], "norm_post": False,
    }
    shared = {"dim": dim, "heads": facts["heads"], "mlp_ratio": facts["mlp_ratio"]}
    encoder = shared | {
        "trunk": {"class_path": "mmtok.nn.vit_trunk.ViTTrunk", "init_args": trunk}, "layers": facts["layers"]
    }
    decoder = shared | {
        "places": facts["num_patches"], "width": facts["width"], "layers": facts["decoder_layers"],
        "prompt": list(facts["prompt"]),
    }
    quantizer = {"quantizer": vq(dim, facts["codebook_size"], l2_norm=False)}
    config = {
        "class_path": f"{path}.LaVIT",
        "init_args": {
            "encoder": {"class_path": f"{path}.LaVITEncoder", "init_args": encoder},
            "quantizer": {"class_path": "mmtok.quantizers.projected.Normalized", "init_args": quantizer},
            "decoder": {"class_path": "mmtok.models.image.lavit_blocks.FeatureDecoder", "init_args": decoder},
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _rules(decoder: str) -> list[Rule | Drop]:
    leaf = r"(?P<leaf>weight|bias)"
    eva, enc, dec = (prefix.replace(".", r"\.") for prefix in (EVA, ENCODER, decoder))
    other = (LOW if decoder == HIGH else HIGH).replace(".", r"\.")
    merger, block = enc + r"causal_encoder\.", enc + r"causal_encoder\.blocks\.(?P<i>\d+)\."
    ours, target = "encoder.merger.", r"encoder.merger.blocks.\g<i>."
    step, pool = dec + r"blocks\.(?P<i>\d+)\.", dec + r"unet_attnpool\."
    judge = (r"(?P<n>\d)\.", r"encoder.selector.judge.\g<n>.\g<leaf>")
    out: list[Rule | Drop] = [
        Drop(other + ".*", "the decoder for another diffusion model"),
        Drop(eva + r"(norm|fc_norm|head)\..*", "after the features that are read"),
        Drop(enc + r"vit_proj\..*", "projection into the language model's space"),
        Drop(enc + r"encoder\..*", "EVA, which comes from its own file"),
        Rule(enc + r"quantize\.embedding\.weight", "quantizer.quantizer.codebook"),
        Rule(enc + r"token_predictor\.in_conv\.0\." + leaf, r"encoder.selector.norm.\g<leaf>"),
        Rule(enc + r"token_predictor\.in_conv\.1\." + leaf, r"encoder.selector.read.\g<leaf>"),
        Rule(enc + r"token_predictor\.out_conv\." + judge[0] + leaf, judge[1]),
        Rule(enc + r"encode_task_layer\.0\." + leaf, r"encoder.hidden.\g<leaf>"),
        Rule(enc + r"encode_task_layer\.2\." + leaf, r"encoder.project.\g<leaf>"),
        Rule(merger + r"ln_vision\." + leaf, ours + r"norm_in.\g<leaf>"),
        Rule(merger + r"norm\." + leaf, ours + r"norm_out.\g<leaf>"),
        Rule(block + r"token_causal_attn\.qkv\." + leaf, target + r"attention.qkv.\g<leaf>"),
        Rule(block + r"token_causal_attn\.proj\." + leaf, target + r"attention.out.\g<leaf>"),
        Rule(dec + r"in_proj\." + leaf, r"decoder.embed.\g<leaf>"),
        Rule(dec + r"pos_embed", "decoder.positions", first),
        Rule(dec + r"query_embed", "decoder.queries", first),
        Rule(dec + r"norm\." + leaf, r"decoder.norm.\g<leaf>"),
        Rule(dec + r"decode_task_layer\.0\." + leaf, r"decoder.hidden.\g<leaf>"),
        Rule(dec + r"decode_task_layer\.2\." + leaf, r"decoder.project.\g<leaf>"),
        Rule(dec + r"unet_proj(?:_1)?\." + leaf, r"decoder.to_prompt.0.\g<leaf>"),
        Rule(dec + r"unet_proj_2\." + leaf, r"decoder.to_prompt.1.\g<leaf>"),
        Rule(pool + r"positional_embedding", "decoder.pool.positions"),
        Rule(pool + r"c_proj\." + leaf, r"decoder.pool.attention.out.\g<leaf>"),
        Rule(step + r"self_attn\.qkv\." + leaf, r"decoder.blocks.\g<i>.attention.qkv.\g<leaf>"),
        Rule(step + r"self_attn\.proj\." + leaf, r"decoder.blocks.\g<i>.attention.out.\g<leaf>"),
    ]
    for letter, part in (("q", "query"), ("k", "key"), ("v", "value")):
        out.append(Rule(pool + letter + r"_proj\." + leaf, f"decoder.pool.attention.{part}." + r"\g<leaf>"))
    for theirs, place, cross in ((block, target, "token_cross_attn"), (step, r"decoder.blocks.\g<i>.", "cross_attn")):
        out += [
            Rule(theirs + cross + r"\.(?P<part>query|key|value)\." + leaf, place + r"cross.\g<part>.\g<leaf>"),
            Rule(theirs + cross + r"\.proj\." + leaf, place + r"cross.out.\g<leaf>"),
            Rule(theirs + r"norm(?P<n>0|1|2)\." + leaf, place + r"norm\g<n>.\g<leaf>"),
            Rule(theirs + r"mlp\.fc1\." + leaf, place + r"mlp.up.\g<leaf>"),
            Rule(theirs + r"mlp\.fc2\." + leaf, place + r"mlp.down.\g<leaf>"),
        ]
    return [*out, *trunk_rules(eva, "encoder.trunk.")]
