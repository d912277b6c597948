"""KARL (arXiv 2507.07995) on a VQGAN base: torch files with the keys under model or ema, no config file.

A base tokenizer inside the file (MAGE's VQGAN) comes along; a file with its codebook alone gives a KARL that predicts
base codes but no images, until `python -m mmtok.training.karl_base` joins a base with the same codebook.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers import mage_vqgan
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, clip_block, flatten
from mmtok.importers.vqgan import all_alive, vq

SYSTEMS = ("karl",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; heads are those of karl_small, images 256 pixels."""
    width, base, side = state["latent_tokens"].shape[1], state[BASE].shape, state["encoder_positional_embedding"].shape
    codes, dim = state["quantize.embedding.weight"].shape
    layers = sum(key.startswith("encoder.transformer.") and key.endswith("ln_1.weight") for key in state)
    return {
        "width": width, "layers": layers, "heads": 8, "patch": state["patch_embed.weight"].shape[-1],
        "image_size": 256, "base_codebook_size": base[0], "base_embed_dim": base[1], "max_grid_tokens": side[-1],
        "max_latent_tokens": len(state["latent_tokens"]), "codebook_size": codes, "token_size": dim,
        "halting_hidden": len(state["halting_mlp.0.bias"]), "halting_threshold": 0.75,
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict, with the base that the file holds."""
    base, state = mage_vqgan.inside(state)
    mapped = apply(state, RULES)
    mapped.state["quantizer.usage"] = all_alive(mapped.state["quantizer.codebook"])
    shared = {
        "dim": facts["token_size"], "base_dim": facts["base_embed_dim"], "width": facts["width"],
        "layers": facts["layers"], "heads": facts["heads"], "max_grid": facts["max_grid_tokens"],
        "max_latents": facts["max_latent_tokens"],
    }
    most = facts["max_latent_tokens"]
    path = "mmtok.models.image.karl"
    encoder = shared | {"patch": facts["patch"], "halting_hidden": facts["halting_hidden"]}
    config = {
        "class_path": f"{path}.KARL",
        "init_args": {
            "encoder": {"class_path": f"{path}.KarlEncoder", "init_args": encoder},
            "quantizer": vq(facts["token_size"], facts["codebook_size"], l2_norm=True),
            "decoder": {
                "class_path": f"{path}.KarlDecoder",
                "init_args": shared | {"base_codes": facts["base_codebook_size"]},
            },
            "size": [facts["image_size"]] * 2,
            "num_latents": min(256, most), "budget": min(256, most), "longest": min(368, most), "step": min(16, most),
            "threshold": facts["halting_threshold"],
        },
    }
    return with_base(Converted(config, mapped.state, mapped.source, mapped.dropped), base)


def with_base(converted: Converted, base: Converted | None) -> Converted:
    """The two joined, `base` as `mage_vqgan.inside` gives it."""
    if base is None:
        return converted
    init_args = converted.config["init_args"] | {"base": base.config}
    return Converted(
        converted.config | {"init_args": init_args}, converted.state | base.state, converted.source | base.source,
        converted.dropped | base.dropped,
    )


BASE = "base_tokenizer.vqgan.quantize.embedding.weight"
_SIDE = r"(?P<side>encoder|decoder)"
_BLOCK, _OURS = _SIDE + r"\.transformer\.(?P<i>\d+)", r"\g<side>.transformer.blocks.\g<i>"
# what ALIT's files name alike
SHARED: list[Rule | Drop] = [
    Rule(BASE.replace(".", r"\."), "decoder.codebook"),
    Drop(r"gan_losses\..*", "discriminators of the training"),
    Rule(r"quantize\.embedding\.weight", "quantizer.codebook"),
    Rule(r"latent_tokens", "encoder.latents"),
    Rule(r"patch_embed\.(weight|bias)", r"encoder.patch_embed.\1"),
    Rule(r"pre_quantizer_mlp\.(weight|bias)", r"encoder.project.\1"),
    Rule(r"encoder_ln_(pre|post)\.(weight|bias)", r"encoder.norm_\1.\2"),
    Rule(r"(encoder|decoder)_positional_embedding", r"\1.positions"),
    Rule(r"decoder\.ln_(pre|post)\.(weight|bias)", r"decoder.norm_\1.\2"),
    Rule(r"decoder\.ffn\.0\.(weight|bias)", r"decoder.head.hidden.\1"),
    Rule(r"decoder\.ffn\.2\.(weight|bias)", r"decoder.head.logits.\1"),
    *clip_block(_BLOCK, _OURS),
]
RULES: list[Rule | Drop] = [
    *SHARED,
    Rule(r"rec_loss_embeddings", "encoder.wishes"),
    Rule(r"halting_mlp\.(\d)\.(weight|bias)", r"encoder.halting.\1.\2"),
    Rule(r"encoder_ln_post_halt\.(weight|bias)", r"encoder.norm_halting.\1"),
    Rule(r"decoder_mask_token", "decoder.mask_token", flatten),
    Rule(r"decoder_latent_tokens_timestep_embed", "decoder.latent_positions"),
    Rule(r"decoder_embed\.(weight|bias)", r"decoder.embed.\1"),
]
