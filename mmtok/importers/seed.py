"""SEED's tokenizer, second version (arXiv 2310.01218): `seed_quantizer.pt` of AILab-CVC/seed-tokenizer-2, flat, fp16.

The file holds EVA-CLIP-g and the causal Q-Former too. Files of the first version, with a reverse Q-Former, are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmtok.importers.keymap import Converted, Drop, Rule, apply
from mmtok.importers.timm_vit import block_rules, depth, first, join_biases, trunk_rules
from mmtok.importers.vqgan import all_alive, vq

SYSTEMS = ("seed_quantizer",)
TRUNK, LAYER = "visual_encoder.", "Qformer.bert.encoder.layer."
WIDE = 88  # channels of a head of EVA-g


def facts(published: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; heads of the Q-Former and of the decoder are BERT's."""
    width, _, patch, _ = state[f"{TRUNK}patch_embed.proj.weight"].shape
    codes, dim = state["quantize.embedding.weight"].shape
    down = [len(state[f"image_down.{i}.weight"]) for i in range(0, 9, 2) if f"image_down.{i}.weight" in state]
    if not down:
        raise ValueError("importer: no key image_down.0.weight: only the second version of SEED's tokenizer is read")
    layers = 1 + max(int(key.removeprefix(LAYER).split(".")[0]) for key in state if key.startswith(LAYER))
    return {
        "trunk_width": width, "patch": patch, "trunk_layers": depth(state, TRUNK), "trunk_heads": max(1, width // WIDE),
        "grid": round((state[f"{TRUNK}pos_embed"].shape[1] - 1) ** 0.5),
        "trunk_hidden": len(state[f"{TRUNK}blocks.0.mlp.fc1.bias"]), "num_queries": state["query_tokens"].shape[1],
        "width": state["query_tokens"].shape[2], "layers": layers, "heads": 12,
        "hidden": len(state[f"{LAYER}0.intermediate_query.dense.bias"]),
        "every": next((i for i in range(1, layers) if f"{LAYER}{i}.crossattention.self.query.weight" in state), layers),
        "codebook_size": codes, "code_dim": dim, "image_down": down, "decoder_heads": 12,
        "decoder_blocks": 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks_image.")),
        "image_features_dim": len(state["distill_image_proj.bias"]),
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    mapped = apply(_join_queries(join_biases(state)), RULES)
    mapped.state["quantizer.usage"] = all_alive(mapped.state["quantizer.codebook"])
    path = "mmtok.models.image.seed"
    trunk = {
        "width": facts["trunk_width"], "layers": facts["trunk_layers"], "heads": facts["trunk_heads"],
        "grid": facts["grid"], "patch": facts["patch"], "hidden": facts["trunk_hidden"], "norm_post": False,
    }
    qformer = {name: facts[name] for name in ("num_queries", "width", "layers", "heads", "hidden", "every")}
    decoder = {
        "dim": facts["code_dim"], "num_queries": facts["num_queries"], "width": facts["width"],
        "layers": facts["decoder_blocks"], "heads": facts["decoder_heads"], "down": list(facts["image_down"]),
        "embedding": facts["image_features_dim"],
    }
    encoder = {
        "trunk": {"class_path": "mmtok.nn.vit_trunk.ViTTrunk", "init_args": trunk},
        "qformer": {
            "class_path": f"{path}.CausalQFormer", "init_args": qformer | {"context": facts["trunk_width"]}
        },
        "dim": facts["code_dim"],
    }
    config = {
        "class_path": f"{path}.SEED",
        "init_args": {
            "encoder": {"class_path": f"{path}.SEEDEncoder", "init_args": encoder},
            "quantizer": vq(facts["code_dim"], facts["codebook_size"], l2_norm=False),
            "decoder": {"class_path": f"{path}.SEEDDecoder", "init_args": decoder},
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _join_queries(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT's separate self-attention projections as one under the name of the queries'."""
    out = dict(state)
    for key in state:
        if ".attention.self.query." in key:
            out[key] = torch.cat([state[key.replace("query", part)] for part in ("query", "key", "value")])
    return out


_LEAF = r"(?P<leaf>weight|bias)"
_BERT, _OURS = r"Qformer\.bert\.encoder\.layer\.(?P<i>\d+)\.", r"encoder.qformer.layers.\g<i>."
RULES: list[Rule | Drop] = [
    Rule(r"quantize\.embedding\.weight", "quantizer.codebook"),
    Rule(r"query_tokens", "encoder.qformer.queries", first),
    Rule(r"ln_vision\." + _LEAF, r"encoder.norm.\g<leaf>"),
    Rule(r"encode_task_layer\.0\." + _LEAF, r"encoder.hidden.\g<leaf>"),
    Rule(r"encode_task_layer\.2\." + _LEAF, r"encoder.project.\g<leaf>"),
    Rule(r"decode_task_layer\.0\." + _LEAF, r"decoder.hidden.\g<leaf>"),
    Rule(r"decode_task_layer\.2\." + _LEAF, r"decoder.project.\g<leaf>"),
    Rule(r"pos_embed_image", "decoder.positions", first),
    *block_rules(r"blocks_image\.(?P<i>\d+)\.", r"decoder.blocks.\g<i>."),
    Rule(r"image_down\.0\.weight", "decoder.down.0.weight"),
    Rule(r"image_down\.2\.weight", "decoder.down.1.weight"),
    Rule(r"image_down\.4\.weight", "decoder.down.2.weight"),
    Rule(r"distill_image_proj\." + _LEAF, r"decoder.out.\g<leaf>"),
    Rule(r"Qformer\.bert\.embeddings\.LayerNorm\." + _LEAF, r"encoder.qformer.norm.\g<leaf>"),
    Drop(r"Qformer\.bert\.embeddings\..*", "BERT's words and their places"),
    Drop(r"Qformer\.(cls|bert\.pooler)\..*", "BERT's heads"),
    Drop(_BERT + r"attention\.self\.(key|value)\..*", "joined with attention.self.query"),
    Drop(_BERT + r"(intermediate|output)\..*", "BERT's text side"),
    Rule(_BERT + r"attention\.self\.query\." + _LEAF, _OURS + r"attention.qkv.\g<leaf>"),
    Rule(_BERT + r"attention\.output\.dense\." + _LEAF, _OURS + r"attention.out.\g<leaf>"),
    Rule(_BERT + r"attention\.output\.LayerNorm\." + _LEAF, _OURS + r"norm1.\g<leaf>"),
    Rule(_BERT + r"crossattention\.self\.(?P<part>query|key|value)\." + _LEAF, _OURS + r"cross.\g<part>.\g<leaf>"),
    Rule(_BERT + r"crossattention\.output\.dense\." + _LEAF, _OURS + r"cross.out.\g<leaf>"),
    Rule(_BERT + r"crossattention\.output\.LayerNorm\." + _LEAF, _OURS + r"norm_cross.\g<leaf>"),
    Rule(_BERT + r"intermediate_query\.dense\." + _LEAF, _OURS + r"mlp.up.\g<leaf>"),
    Rule(_BERT + r"output_query\.dense\." + _LEAF, _OURS + r"mlp.down.\g<leaf>"),
    Rule(_BERT + r"output_query\.LayerNorm\." + _LEAF, _OURS + r"norm2.\g<leaf>"),
    Drop(r"(pos_embed|blocks\..*)", "decoder of the Q-Former's vectors in the authors' training"),
    *trunk_rules(r"visual_encoder\.", "encoder.trunk."),
]
