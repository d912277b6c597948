"""Rules for vision transformers under timm's key names (DINO, DINOv2, EVA), which published tokenizers contain."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.importers.keymap import Drop, Rule, flatten

BIAS = "joined with q_bias: keys have none"


def first(value: Tensor) -> Tensor:
    """[1, L, W] -> [L, W]."""
    return value[0]


def trunk_rules(theirs: str, ours: str) -> list[Rule | Drop]:
    """Rules for a `ViTTrunk`; `theirs` a pattern that ends in a dot or is empty, `ours` a prefix with its dot."""
    block, target = theirs + r"blocks\.(?P<i>\d+)\.", ours + r"blocks.\g<i>."
    return [
        Rule(theirs + r"patch_embed\.proj\.(?P<leaf>weight|bias)", ours + r"patch_embed.\g<leaf>"),
        Rule(theirs + r"cls_token", ours + "class_token", flatten),
        Rule(theirs + r"pos_embed", ours + "positions", first),
        Rule(theirs + r"norm\.(?P<leaf>weight|bias)", ours + r"norm_post.\g<leaf>"),
        Drop(theirs + r"mask_token", "mask token of the pretraining"),
        Drop(block + r"attn\.v_bias", BIAS),
        *block_rules(block, target),
    ]


def block_rules(theirs: str, ours: str) -> list[Rule | Drop]:
    """Rules for one block; both prefixes end in a dot."""
    return [
        Rule(theirs + r"norm(?P<n>1|2)\.(?P<leaf>weight|bias)", ours + r"norm\g<n>.\g<leaf>"),
        Rule(theirs + r"attn\.qkv\.(?P<leaf>weight|bias)", ours + r"attention.qkv.\g<leaf>"),
        Rule(theirs + r"attn\.q_bias", ours + "attention.qkv.bias"),
        Rule(theirs + r"attn\.proj\.(?P<leaf>weight|bias)", ours + r"attention.out.\g<leaf>"),
        Rule(theirs + r"ls(?P<n>1|2)\.gamma", ours + r"scale\g<n>"),
        Rule(theirs + r"mlp\.fc1\.(?P<leaf>weight|bias)", ours + r"mlp.up.\g<leaf>"),
        Rule(theirs + r"mlp\.fc2\.(?P<leaf>weight|bias)", ours + r"mlp.down.\g<leaf>"),
    ]


def join_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """EVA's separate biases of queries and values as one under the name of the first."""
    out = dict(state)
    for key, q in state.items():
        if key.endswith("attn.q_bias"):
            v = state[key.removesuffix("q_bias") + "v_bias"]
            out[key] = torch.cat([q, torch.zeros_like(q), v])
    return out


def depth(state: dict[str, Tensor], prefix: str) -> int:
    """Number of blocks under `prefix` (with its dot)."""
    start = f"{prefix}blocks."
    return 1 + max((int(key.removeprefix(start).split(".")[0]) for key in state if key.startswith(start)), default=-1)
