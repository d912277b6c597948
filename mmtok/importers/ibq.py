"""IBQ (arXiv 2412.02692): `imagenet256_<V>.ckpt` (keys under state_dict) and its YAML as `config.yaml`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers import taming
from mmtok.importers.keymap import Config, Converted, apply
from mmtok.importers.vqgan import attn_levels, take_averages, vqgan_config

SYSTEMS = ("ibq",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """ddconfig of the published YAML; codebook sizes off the weights."""
    try:
        ddconfig = published["model"]["init_args"]["ddconfig"]
    except (KeyError, TypeError):
        raise ValueError("importer ibq: the published YAML must lie beside the weights as config.yaml") from None
    codes, dim = state["quantize.embedding.weight"].shape
    return {"ddconfig": ddconfig, "codebook_size": codes, "embed_dim": dim}


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict: taming's layout with another quantizer; moving averages where the file has them."""
    dd = facts["ddconfig"]
    state, dropped = take_averages(state)
    mapped = apply(state, taming.rules(len(dd["ch_mult"])))
    sizes = {
        "z_channels": dd["z_channels"], "channels": dd["ch"], "channel_mult": list(dd["ch_mult"]),
        "attn_levels": attn_levels(dd),
    }
    quantizer = {
        "class_path": "mmtok.quantizers.ibq.IBQ",
        "init_args": {"dim": facts["embed_dim"], "codebook_size": facts["codebook_size"], "entropy_eps": 1e-5},
    }
    config = vqgan_config(sizes, dd["num_res_blocks"], quantizer, dd["resolution"])
    return Converted(config, mapped.state, mapped.source, mapped.dropped | dropped)
