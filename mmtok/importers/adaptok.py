"""AdapTok (arXiv 2505.17011): `model.safetensors` and `config.json` of AdapTok or AdapTok-Scorer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers import larp
from mmtok.importers.keymap import Converted, Drop, Rule, apply
from mmtok.importers.vqgan import all_alive

SYSTEMS = ("adaptok",)
BLOCKS = 4  # of four frames each
SCORER_STEP = 64


def facts(published: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """As LARP, with the scorer where the file has one; blocks and step from the published arguments."""
    arguments = published.get("constructor", published)
    masks = arguments.get("mask_generator", {})
    return larp.facts(published, state) | {
        "blocks": masks.get("tot_groups", BLOCKS), "min_length": masks.get("min_first_toks", 1),
        "scorer": {
            "width": state["scorer.project.weight"].shape[0], "layers": larp.layers(state, "scorer.blocks"),
            "heads": arguments.get("scorer_num_heads", larp.HEADS), "step": arguments.get("scorer_step", SCORER_STEP),
        } if "scorer.project.weight" in state else None,
    }  # fmt: skip


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; the published scorer predicts LPIPS, standardised by unpublished statistics."""
    blocks = facts["blocks"]
    latents = facts["latents"] // blocks
    unstack = {"scorer.latent_pe": lambda value: value.unflatten(0, (blocks, latents))}
    mapped = apply(larp.fuse(state), [*larp.RULES, *(_scorer(unstack))])
    mapped.state["quantizer.usage"] = all_alive(mapped.state["quantizer.codebook"])
    args = larp.networks(facts, facts["frames"] // blocks, blocks)
    args["tail"] = {
        "class_path": "mmtok.taildrop.TruncatedNormalTail",
        "init_args": {"coding": {"class_path": "mmtok.keep.BlockPrefix"}, "min_length": facts["min_length"]},
    }
    if facts["scorer"] is not None:
        scorer = facts["scorer"] | {"in_width": 2 * facts["width"], "num_latents": latents, "blocks": blocks}
        scorer |= {"measure": "lpips", "mean": 0.0, "std": 1.0, "own_visible": False}
        args["scorer"] = {"class_path": "mmtok.models.video.adaptok.PrefixScorer", "init_args": scorer}
    config = {"class_path": "mmtok.models.video.adaptok.AdapTok", "init_args": args}
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _scorer(transforms: dict[str, Any]) -> list[Rule | Drop]:
    return [
        Rule(r"scorer\.latent_pe", "scorer.positions", transforms["scorer.latent_pe"]),
        Rule(r"scorer\.project\.(weight|bias)", r"scorer.project.\1"),
        Rule(r"scorer\.ln_post\.(weight|bias)", r"scorer.norm.\1"),
        Rule(r"scorer\.ffn\.(0|2)\.(weight|bias)", r"scorer.head.\1.\2"),
    ]
