"""FQGAN (arXiv 2411.16681): `fqgan_dual_ds16.pt`, `fqgan_triple_ds8.pt`, ... (keys under model or ema).

The weights are CC BY-NC: not for commercial use.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers import llamagen
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, clip_block
from mmtok.importers.vqgan import all_alive, count, level_widths, vq

SYSTEMS = ("fqgan_dual", "fqgan_triple")
DUAL = {"vis": "visual_head", "sem": "semantic_head"}  # in decoding order
TRIPLE = {"vis": "visual_head", "sem_mid": "semantic_head_mid", "sem_high": "semantic_head_high"}
HEADS = {"sem": "feat_pred_head", "sem_mid": "mid_sem_feat_pred", "sem_high": "high_sem_feat_pred"}


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; every transformer has 8 heads."""
    widths = level_widths(state, "encoder.conv_blocks.{}.res.0")
    channels = state["encoder.conv_in.weight"].shape[0]
    codes, dim = state["quantize_vis.embedding.weight"].shape
    triple = "quantize_sem_mid.embedding.weight" in state
    names = list(TRIPLE if triple else DUAL)[1:]
    return {
        "ch": channels, "ch_mult": [width // channels for width in widths],
        "num_res_blocks": count(state, "encoder.conv_blocks.0.res.{}"),
        "z_channels": state["quant_conv_vis.weight"].shape[1], "codebook_size": codes, "codebook_embed_dim": dim,
        "adapter": _transformer(state, "encoder.visual_head.0", 0),
        "feature_head": _transformer(state, HEADS[names[0]], 1),
        "feature_heads": [_transformer(state, HEADS[name], 1) for name in names],
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    branches = TRIPLE if "quantize_sem_mid.embedding.weight" in state else DUAL
    mapped = apply(state, _rules(branches))
    for i in range(len(branches)):
        mapped.state[f"quantizer.members.{i}.usage"] = all_alive(mapped.state[f"quantizer.members.{i}.codebook"])
    dim, adapter = facts["codebook_embed_dim"], facts["adapter"]
    heads = facts.get("feature_heads", [facts["feature_head"]])
    sizes = {
        "z_channels": facts["z_channels"], "channels": facts["ch"], "channel_mult": list(facts["ch_mult"]),
        "attn_levels": [len(facts["ch_mult"]) - 1],
    }
    encoder = sizes | {
        "num_res_blocks": facts["num_res_blocks"], "code_dims": [dim] * len(branches), "grid": adapter["grid"],
        "layers": adapter["layers"], "heads": adapter["heads"],
    }
    members = [vq(dim, facts["codebook_size"], l2_norm=True)] * len(branches)
    path = "mmtok.models.image.fqgan"
    config = {
        "class_path": f"{path}.FactorizedTokenizer",
        "init_args": {
            "encoder": {"class_path": f"{path}.BranchEncoder2d", "init_args": encoder},
            "quantizer": {
                "class_path": "mmtok.quantizers.split.Product",
                "init_args": {"quantizers": members, "disentangle": True},
            },
            "decoder": {
                "class_path": "mmtok.nn.conv2d.ConvDecoder2d",
                "init_args": sizes | {"num_res_blocks": facts["num_res_blocks"] + 1},
            },
            "features": [{"class_path": f"{path}.FeatureHead", "init_args": head | {"dim": dim}} for head in heads],
            "size": [adapter["grid"] * 2 ** (len(facts["ch_mult"]) - 1)] * 2,
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _transformer(state: dict[str, Tensor], prefix: str, extra: int) -> dict[str, int]:
    """Width, layers, heads and grid of a transformer whose position table has `extra` class rows."""
    rows, width = state[f"{prefix}.positional_embedding"].shape
    layers = sum(key.startswith(f"{prefix}.transformer.") and key.endswith("ln_1.weight") for key in state)
    return {"width": width, "layers": layers, "heads": 8, "grid": round((rows - extra) ** 0.5)}


def _vit(theirs: str, ours: str) -> list[Rule]:
    """Rules for positions, norms and blocks of one transformer."""
    block, target = theirs + r"\.transformer\.(?P<i>\d+)", ours + r".transformer.blocks.\g<i>"
    return [
        Rule(theirs + r"\.positional_embedding", ours + ".positions"),
        Rule(theirs + r"\.ln_(pre|post)\.(weight|bias)", ours + r".norm_\1.\2"),
        *clip_block(block, target),
    ]


def _rules(branches: dict[str, str]) -> list[Rule | Drop]:
    out: list[Rule | Drop] = [Drop(r"quantize_(vis|sem\w*)\.codebook_used", "usage window of the training")]
    for i, (name, head) in enumerate(branches.items()):
        branch = f"encoder.branches.{i}"
        out += _vit(rf"encoder\.{head}\.0", branch)
        out += [
            Rule(rf"encoder\.(norm_out|conv_out)_{name}\.(weight|bias)", branch + r".\1.\2"),
            Rule(rf"quant_conv_{name}\.(weight|bias)", branch + r".project.\1"),
            Rule(rf"quantize_{name}\.embedding\.weight", f"quantizer.members.{i}.codebook"),
        ]
    for i, name in enumerate(list(branches)[1:]):
        head, ours = HEADS[name], f"features.{i}"
        out += [
            *_vit(head, ours),
            Rule(rf"{head}\.class_embedding", f"{ours}.class_token", lambda value: value.flatten()),
            Rule(rf"{head}\.upscale\.0\.(weight|bias)", ours + r".up.\1"),
            Rule(rf"{head}\.upscale\.2\.(weight|bias)", ours + r".mix.\1"),
        ]
    return [*out, *llamagen.RULES]

