"""FlexTok (arXiv 2502.13967): `model.safetensors` of EPFL-VILAB/flextok_*; Apple's research licence, non-commercial.

How the published modules are put together is an assumption until a released config.json was read: see docs/image.md.
The image VAE is not part of these keys; it is attached as `vae`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, flatten

SYSTEMS = ("flextok",)
PREFIX = {"encoder": "encoder.module_dict.enc_", "decoder": "decoder.module_dict.dec_"}


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; FSQ levels are those of every published model, heads are 64 wide."""
    registers, width = state["encoder.module_dict.enc_register_module.registers"].shape
    pixels = state["encoder.module_dict.enc_patch_emb.patch_proj.weight"].shape[1]
    grid = state["encoder.module_dict.enc_posemb_module.posembs"].shape[-1]
    return {
        "width": width, "depth": _layers(state, "encoder"), "head_dim": 64, "num_registers": registers, "patch": 2,
        "latent_channels": pixels // 4, "latent_size": 2 * grid, "fsq_levels": [8, 8, 8, 5, 5, 5],
        "time_frequency_embedding_size": state["decoder.module_dict.dec_time_embedder.mlp.0.weight"].shape[1],
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict, without a VAE."""
    mapped = apply(state, RULES)
    shared = {
        "dim": len(facts["fsq_levels"]), "channels": facts["latent_channels"], "patch": facts["patch"],
        "grid": facts["latent_size"] // facts["patch"], "num_registers": facts["num_registers"],
        "head_dim": facts["head_dim"],
    }
    width = state["decoder.module_dict.dec_from_latents.proj.weight"].shape[0]
    encoder = shared | {"width": facts["width"], "layers": _layers(state, "encoder")}
    decoder = shared | {"width": width, "layers": _layers(state, "decoder")}
    decoder["frequencies"] = facts["time_frequency_embedding_size"]
    path = "mmtok.models.image.flextok"
    config = {
        "class_path": f"{path}.FlexTok",
        "init_args": {
            "encoder": {"class_path": f"{path}.FlexEncoder", "init_args": encoder},
            "quantizer": {"class_path": "mmtok.quantizers.fsq.FSQ", "init_args": {"levels": facts["fsq_levels"]}},
            "decoder": {"class_path": f"{path}.FlexDecoder", "init_args": decoder},
            "tail": {"class_path": "mmtok.taildrop.UniformTail"},
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _layers(state: dict[str, Tensor], side: str) -> int:
    prefix = f"{PREFIX[side]}transformer.blocks."
    return sum(key.startswith(prefix) and key.endswith("attn.wq.weight") for key in state)


def _rules() -> list[Rule | Drop]:
    out: list[Rule | Drop] = []
    names = {"attn.wq": "q", "attn.wk": "k", "attn.wv": "v", "attn.proj": "out"}
    names |= {"mlp.fc1": "gate", "mlp.fc3": "up", "mlp.fc2": "down"}
    for side, prefix in PREFIX.items():
        block = prefix.replace(".", r"\.") + r"transformer\.blocks\.(\d+)\."
        ours = side + r".transformer.blocks.\1."
        out += [Rule(block + a.replace(".", r"\.") + r"\.weight", ours + b + ".weight") for a, b in names.items()]
        out.append(Rule(block + r"adaLN_modulation\.1\.(weight|bias)", ours + r"modulation.\2"))
    encoder, decoder = (prefix.replace(".", r"\.") for prefix in PREFIX.values())
    return [
        *out,
        Rule(encoder + r"patch_emb\.patch_proj\.(weight|bias)", r"encoder.patch_embed.\1"),
        Rule(encoder + r"posemb_module\.posembs", "encoder.positions", _first),
        Rule(encoder + r"register_module\.registers", "encoder.registers"),
        Rule(encoder + r"to_latents\.proj\.(weight|bias)", r"encoder.project.\1"),
        Rule(decoder + r"from_latents\.proj\.(weight|bias)", r"decoder.embed.\1"),
        Rule(decoder + r"registers_posemb_module\.posembs", "decoder.register_positions", _rows),
        Rule(decoder + r"nested_dropout\.dropout_mask_token", "decoder.dropped_token", flatten),
        Rule(decoder + r"latent_dropout\.nullcond", "decoder.null_token", flatten),
        Rule(decoder + r"noise_patch_emb\.patch_proj\.(weight|bias)", r"decoder.patch_embed.\1"),
        Rule(decoder + r"patches_posemb_module\.posembs", "decoder.positions", _first),
        Rule(decoder + r"time_embedder\.mlp\.0\.(weight|bias)", r"decoder.time.hidden.\1"),
        Rule(decoder + r"time_embedder\.mlp\.2\.(weight|bias)", r"decoder.time.out.\1"),
        Rule(decoder + r"to_patches\.adaLN_modulation\.1\.(weight|bias)", r"decoder.modulation.\1"),
        Rule(decoder + r"to_patches\.proj\.(weight|bias)", r"decoder.out.\1"),
    ]


def _first(value: Tensor) -> Tensor:
    """[1, W, g, g] -> [W, g, g]."""
    return value[0]


def _rows(value: Tensor) -> Tensor:
    """[1, 1, W, N] -> [N, W]."""
    return value[0, 0].T


RULES = _rules()
