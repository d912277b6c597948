"""TokenFlow (arXiv 2412.03069): `tokenflow_clipb_32k_enhanced.pt`, `tokenflow_siglip_32k.pt` (keys under model or ema).

The semantic encoder (CLIP ViT-B/16 or SigLIP-so400m) is in the file. The CLIP model is imported for 256 pixels, where
its authors use it with nine grids; config.yaml beside it with `image_size: 224` gives the eight of its training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmtok.importers import llamagen
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, clip_block, flatten, linear
from mmtok.importers.timm_vit import depth, join_biases, trunk_rules
from mmtok.importers.vqgan import all_alive, count, level_widths

SYSTEMS = ("tokenflow_quantizer",)
SCALES = {
    14: [1, 2, 4, 6, 8, 10, 12, 14], 16: [1, 2, 4, 6, 8, 10, 12, 14, 16],
    27: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27],
}  # fmt: skip
SEM, PIX = "quantize.embedding_vqkd.weight", "quantize.embedding_vqgan.weight"
SIGLIP = "encoder_vqkd.vision_model."


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; scales by the grid."""
    widths = level_widths(state, "encoder.conv_blocks.{}.res.0")
    channels, siglip = state["encoder.conv_in.weight"].shape[0], f"{SIGLIP}embeddings.patch_embedding.weight" in state
    kernel = state[f"{SIGLIP}embeddings.patch_embedding.weight" if siglip else "encoder_vqkd.conv1.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    block = f"{SIGLIP}encoder.layers." if siglip else "encoder_vqkd.transformer.resblocks."
    layers = 1 + max(int(k.removeprefix(block).split(".")[0]) for k in state if k.startswith(block))
    hidden = block + ("0.mlp.fc1" if siglip else "0.mlp.c_fc")
    if siglip:
        places = len(state[f"{SIGLIP}embeddings.position_embedding.weight"])
    else:
        places = len(state["encoder_vqkd.positional_embedding"]) - 1
    grid = round(places**0.5)
    size = published.get("image_size", grid * patch + 6 if siglip else 256)
    codes, dim = state[SEM].shape
    return {
        "codebook_size": codes, "semantic_code_dim": dim, "pixel_code_dim": state[PIX].shape[1], "siglip": siglip,
        "semantic_width": width, "semantic_layers": layers, "semantic_hidden": len(state[f"{hidden}.bias"]),
        "semantic_heads": max(1, width // (72 if siglip else 64)), "patch": patch, "grid": grid, "image_size": size,
        "scales": SCALES.get(size // patch), "ch": channels, "ch_mult": [w // channels for w in widths],
        "num_res_blocks": count(state, "encoder.conv_blocks.0.res.{}"),
        "pixel_z_channels": state["quant_conv.weight"].shape[1],
        "decoder_ch": state["decoder.conv_out.weight"].shape[1],
        "decoder_res_blocks": count(state, "decoder.conv_blocks.0.res.{}"),
        "decoder_width": state["decoder_vqkd.cls_token"].shape[-1], "decoder_layers": depth(state, "decoder_vqkd."),
        "decoder_heads": 12, "decoder_grid": round((state["decoder_vqkd.pos_embed"].shape[1] - 1) ** 0.5),
        "teacher_width": len(state["decode_task_layer.2.bias"]),
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    if facts["scales"] is None:
        raise ValueError(f"importer: no list of scales for {facts['image_size']} pixels: {sorted(SCALES)} patches have")
    joined = _join_siglip(join_biases(state)) | {SEM: torch.cat([state[SEM], state[PIX]], 1)}
    mapped = apply(joined, _rules(facts["semantic_layers"]))
    mapped.state["quantizer.quantizer.usage"] = all_alive(mapped.state["quantizer.quantizer.codebook"])
    path, siglip, dim = "mmtok.models.image.tokenflow", facts["siglip"], facts["semantic_code_dim"]
    semantic: Config = {
        "width": facts["semantic_width"], "layers": facts["semantic_layers"] - siglip, "grid": facts["grid"],
        "heads": facts["semantic_heads"], "patch": facts["patch"], "hidden": facts["semantic_hidden"],
        "eps": 1e-6 if siglip else 1e-5, "class_token": not siglip, "norm_pre": not siglip, "norm_post": not siglip,
        "patch_bias": siglip,
        "activation": {"class_path": f"mmtok.nn.vit_trunk.{'TanhGELU' if siglip else 'QuickGELU'}"},
    }
    meaning = {
        "width": facts["decoder_width"], "layers": facts["decoder_layers"], "heads": facts["decoder_heads"],
        "grid": facts["decoder_grid"], "patch": None,
    }
    sizes = {
        "z_channels": facts["pixel_z_channels"], "channel_mult": list(facts["ch_mult"]),
        "attn_levels": [len(facts["ch_mult"]) - 1],
    }
    trunk = "mmtok.nn.vit_trunk.ViTTrunk"
    shared = {"dims": [dim, facts["pixel_code_dim"]], "codebook_size": facts["codebook_size"], "revival": 0.0}
    init_args: Config = {
        "encoder": {
            "class_path": "mmtok.nn.conv2d.ConvEncoder2d",
            "init_args": sizes | {"channels": facts["ch"], "num_res_blocks": facts["num_res_blocks"]},
        },
        "semantic": {
            "class_path": f"{path}.SemanticEncoder",
            "init_args": {
                "trunk": {"class_path": trunk, "init_args": semantic}, "dim": dim,
                "last": facts["semantic_layers"] - 1 if siglip else None,
            },
        },
        "quantizer": {
            "class_path": "mmtok.quantizers.scales.ScaleResidual",
            "init_args": {
                "quantizer": {"class_path": "mmtok.quantizers.shared_index.SharedIndexVQ", "init_args": shared},
                "scales": list(facts["scales"]), "drop": 0.1, "sum_losses": False,
            },
        },
        "decoder": {
            "class_path": "mmtok.nn.conv2d.ConvDecoder2d",
            "init_args": sizes | {"channels": facts["decoder_ch"], "num_res_blocks": facts["decoder_res_blocks"]},
        },
        "meaning": {
            "class_path": f"{path}.SemanticDecoder",
            "init_args": {
                "trunk": {"class_path": trunk, "init_args": meaning}, "dim": dim, "features": facts["teacher_width"]
            },
        },
        "size": [facts["image_size"]] * 2,
    }
    config = {"class_path": f"{path}.TokenFlow", "init_args": init_args}
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _join_siglip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """SigLIP's separate projections as one under the name of the queries'."""
    out = dict(state)
    for key in state:
        if key.startswith(SIGLIP) and ".self_attn.q_proj." in key:
            out[key] = torch.cat([state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
    return out


def _rules(layers: int) -> list[Rule | Drop]:
    """layers: of SigLIP, whose last one is never read."""
    ours, leaf = "semantic.trunk.", r"(?P<leaf>weight|bias)"
    clip, siglip, target = r"encoder_vqkd\.", SIGLIP.replace(".", r"\."), ours + r"blocks.\g<i>."
    layer = siglip + r"encoder\.layers\.(?P<i>\d+)\."
    out: list[Rule | Drop] = [
        Rule(SEM.replace(".", r"\."), "quantizer.quantizer.codebook"),
        Drop(PIX.replace(".", r"\."), "joined with embedding_vqkd"),
        Drop(r"scaling_layer\..*", "pixel range of the semantic encoder, [-1, 1]"),
        Drop(siglip + r"(head|post_layernorm)\..*", "after the layer that is read"),
        Drop(siglip + rf"encoder\.layers\.{layers - 1}\..*", "after the layer that is read"),
        Drop(layer + r"self_attn\.(k|v)_proj\..*", "joined with q_proj"),
        Drop(r"encoder_vqkd\.proj", "projection of CLIP's class token"),
        *(
            Rule(f"{name}.{i}.".replace(".", r"\.") + leaf, f"{part}.{end}." + r"\g<leaf>")
            for name, part in (("encode_task_layer", "semantic"), ("decode_task_layer", "meaning_decoder"))
            for i, end in ((0, "hidden"), (2, "project"))
        ),
        # CLIP under its own names
        Rule(clip + r"conv1\.weight", ours + "patch_embed.weight"),
        Rule(clip + r"class_embedding", ours + "class_token", flatten),
        Rule(clip + r"positional_embedding", ours + "positions"),
        Rule(clip + r"ln_(?P<n>pre|post)\." + leaf, ours + r"norm_\g<n>.\g<leaf>"),
        *clip_block(clip + r"transformer\.resblocks\.(?P<i>\d+)", ours + r"blocks.\g<i>"),
        # SigLIP as transformers names it
        Rule(siglip + r"embeddings\.patch_embedding\." + leaf, ours + r"patch_embed.\g<leaf>"),
        Rule(siglip + r"embeddings\.position_embedding\.weight", ours + "positions"),
        Drop(siglip + r"embeddings\.position_ids", "0, 1, 2, ..."),
        Rule(layer + r"layer_norm(?P<n>1|2)\." + leaf, target + r"norm\g<n>.\g<leaf>"),
        Rule(layer + r"self_attn\.q_proj\." + leaf, target + r"attention.qkv.\g<leaf>"),
        Rule(layer + r"self_attn\.out_proj\." + leaf, target + r"attention.out.\g<leaf>"),
        Rule(layer + r"mlp\.fc1\." + leaf, target + r"mlp.up.\g<leaf>"),
        Rule(layer + r"mlp\.fc2\." + leaf, target + r"mlp.down.\g<leaf>"),
        # the decoder of the meaning, BEiT's transformer
        Rule(r"decoder_vqkd\.patch_embed\.proj\.weight", "meaning_decoder.embed.weight", linear),
        Rule(r"decoder_vqkd\.patch_embed\.proj\.bias", "meaning_decoder.embed.bias"),
        Rule(r"decoder_vqkd\.fc_norm\." + leaf, r"meaning_decoder.trunk.norm_post.\g<leaf>"),
        *trunk_rules(r"decoder_vqkd\.", "meaning_decoder.trunk."),
    ]
    return [*out, *llamagen.RULES]
