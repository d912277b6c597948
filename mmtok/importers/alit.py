"""ALIT (arXiv 2411.02393) on a VQGAN base: torch files with the keys under model or ema, no config file.

As in `mmtok.importers.karl`, a base inside the file comes along.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers import mage_vqgan
from mmtok.importers.karl import BASE, SHARED, with_base
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, flatten
from mmtok.importers.vqgan import all_alive, vq

SYSTEMS = ("alit",)
HEADS = {1024: 8, 768: 12}  # small and base; semilarge has the width of small, 16 layers and 16 heads
EMPHASIS = (2.5, 2.0, 1.5, 1.25)  # then 1


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; heads are those of the published sizes."""
    step, width = state["latent_tokens"].shape
    layers = sum(key.startswith("encoder.transformer.") and key.endswith("ln_1.weight") for key in state)
    codes, dim = state["quantize.embedding.weight"].shape
    grid, patch = round((len(state["encoder_positional_embedding"]) - 1) ** 0.5), state["patch_embed.weight"].shape[-1]
    return {
        "width": width, "layers": layers, "heads": 16 if layers >= 16 else HEADS.get(width, 8), "patch": patch,
        "image_size": grid * patch, "base_codebook_size": len(state[BASE]), "base_embed_dim": state[BASE].shape[1],
        "num_init_latent_tokens": step, "iterations": len(state["timestep_embedding"]),
        "max_latent_tokens": len(state["decoder.latent_token_positional_embedding"]), "codebook_size": codes,
        "token_size": dim, "halting_threshold": 0.55,
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict, with the base that the file holds."""
    base, state = mage_vqgan.inside(state)
    mapped = apply(state, RULES)
    mapped.state["quantizer.usage"] = all_alive(mapped.state["quantizer.codebook"])
    shared = {
        "dim": facts["token_size"], "base_dim": facts["base_embed_dim"], "width": facts["width"],
        "layers": facts["layers"], "heads": facts["heads"], "grid": facts["image_size"] // facts["patch"],
    }
    path, count = "mmtok.models.image.alit", facts["iterations"]
    encoder = shared | {"patch": facts["patch"], "step": facts["num_init_latent_tokens"], "iterations": count}
    decoder = shared | {"base_codes": facts["base_codebook_size"], "max_latents": facts["max_latent_tokens"]}
    config = {
        "class_path": f"{path}.ALIT",
        "init_args": {
            "encoder": {"class_path": f"{path}.AlitEncoder", "init_args": encoder},
            "quantizer": vq(facts["token_size"], facts["codebook_size"], l2_norm=True),
            "decoder": {"class_path": f"{path}.AlitDecoder", "init_args": decoder},
            "size": [facts["image_size"]] * 2, "halting": facts["halting_threshold"],
            "emphasis": [*EMPHASIS[:count], *[1.0] * (count - len(EMPHASIS))],
        },
    }
    return with_base(Converted(config, mapped.state, mapped.source, mapped.dropped), base)


RULES: list[Rule | Drop] = [
    *SHARED,
    Rule(r"latent_token_positional_embedding", "encoder.latent_positions"),
    Rule(r"timestep_embedding", "encoder.times"),
    Rule(r"encoder_ln_recursive\.(weight|bias)", r"encoder.norm_grown.\1"),
    Rule(r"(encoder|decoder)_mask_token", r"\1.mask_token", flatten),
    Rule(r"(encoder|decoder)_class_embedding", r"\1.class_token", flatten),
    Rule(r"decoder\.latent_token_positional_embedding", "decoder.latent_positions"),
    Rule(r"decoder\.decoder_embed\.(weight|bias)", r"decoder.embed.\1"),
]
