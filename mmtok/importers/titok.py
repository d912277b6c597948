"""TiTok (arXiv 2406.07550), two-stage and single-stage, One-D-Piece (arXiv 2501.10064), TA-TiTok (arXiv 2501.07730).

Published as `model.safetensors` + `config.json` (the whole training configuration), or a flat .bin.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers import maskgit_vqgan
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, clip_block, flatten, linear
from mmtok.importers.vqgan import all_alive, vq

SYSTEMS = ("titok_two_stage", "titok_single_stage", "one_d_piece", "tatitok_vq")
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, layers, heads
PROXY_CODES = 1024
CLIP = "checkpoints/clip-vit-large-patch14-336"  # where TA-TiTok's text encoder is expected
PIXEL_DECODER = {"z_channels": 256, "hidden_channels": 128, "channel_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2}


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes and flags of the published config.json, absent fields at their published defaults."""
    try:
        model, side = published["model"]["vq_model"], published["dataset"]["preprocessing"]["crop_size"]
        two_stage = model.get("finetune_decoder", True)
        facts = {
            "image_size": side,
            "encoder": _vit(model["vit_enc_model_size"], model["vit_enc_patch_size"]),
            "decoder": _vit(model["vit_dec_model_size"], model["vit_dec_patch_size"]),
            "num_latent_tokens": model["num_latent_tokens"], "codebook_size": model["codebook_size"],
            "token_size": model["token_size"], "use_l2_norm": model["use_l2_norm"],
            "legacy_readout": model.get("is_legacy", True), "two_stage": two_stage,
            "strict_length_assertion": model.get("strict_length_assertion", True),
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"importer titok: the published config.json beside the weights lacks {error}") from None
    if model.get("quantize_mode", "vq") != "vq":
        raise ValueError(f"importer titok: quantize_mode {model['quantize_mode']!r} makes no codes; only vq does")
    if facts["legacy_readout"]:
        facts["proxy_codebook_size"] = PROXY_CODES
    if two_stage:
        facts["pixel_decoder"] = PIXEL_DECODER
    if TEXT in state:
        facts["text_folder"] = CLIP
    return facts


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; One-D-Piece gets the tail drop it was trained with."""
    two_stage = facts["two_stage"]
    proxy = facts.get("proxy_codebook_size")
    rules = [*RULES, *(PIXEL_HEAD if proxy is None else PROXY_HEAD)]
    shared = {"dim": facts["token_size"], "num_latents": facts["num_latent_tokens"], "image_size": facts["image_size"]}
    decoder = shared | _sizes(facts["decoder"])
    args: Config = {
        "encoder": {
            "class_path": "mmtok.models.image.titok.TiTokEncoder",
            "init_args": shared | _sizes(facts["encoder"]) | {"legacy_readout": facts["legacy_readout"]},
        },
        "quantizer": vq(facts["token_size"], facts["codebook_size"], facts["use_l2_norm"]),
        "decoder": {
            "class_path": "mmtok.models.image.titok.TiTokDecoder",
            "init_args": decoder if proxy is None else decoder | {"proxy_codes": proxy},
        },
        "unit_range": True,
    }
    if two_stage:
        pixels = facts["pixel_decoder"]
        args["pixels"] = {
            "class_path": "mmtok.models.image.titok_proxy.SoftPixels",
            "init_args": {"codebook_size": proxy, "decoder": maskgit_vqgan.decoder_config(pixels)},
        }
        rules.append(Rule(r"pixel_quantize\.embedding\.weight", "pixels.codebook"))
        rules += maskgit_vqgan.decoder_rules("pixel_decoder", "pixels.decoder", len(pixels["channel_mult"]))
    if TEXT in state:
        width = state[TEXT].shape[1]
        tokens = state["decoder.text_guidance_positional_embedding"].shape[0]
        args["decoder"] = {
            "class_path": "mmtok.models.image.tatitok.TextTiTokDecoder",
            "init_args": decoder | {"text_tokens": tokens, "text_dim": width},
        }
        if "text_folder" in facts:
            clip = {"folder": facts["text_folder"], "context": tokens, "dim": width}
            args["text"] = {"class_path": "mmtok.models.image.captions.ClipText", "init_args": clip}
        rules += TEXT_RULES
    if not facts.get("strict_length_assertion", True):
        args["tail"] = {"class_path": "mmtok.taildrop.UniformTail", "init_args": {"per_batch": True}}
    family = "titok.TiTok" if proxy is None else "titok_proxy.ProxyTiTok"
    if TEXT in state:
        family = "tatitok.TextTiTok"
    mapped = apply(state, rules)
    mapped.state["quantizer.usage"] = all_alive(mapped.state["quantizer.codebook"])
    config = {"class_path": f"mmtok.models.image.{family}", "init_args": args}
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _vit(size: str, patch: int) -> dict[str, int]:
    width, layers, heads = SIZES[size]
    return {"width": width, "layers": layers, "heads": heads, "patch": patch, "mlp_ratio": 4}


def _sizes(vit: dict[str, Any]) -> Config:
    return {name: vit[name] for name in ("patch", "width", "layers", "heads", "mlp_ratio")}


_SIDE = r"(?P<side>encoder|decoder)"
_BLOCK, _OURS = _SIDE + r"\.transformer\.(?P<i>\d+)", r"\g<side>.transformer.blocks.\g<i>"
RULES: list[Rule | Drop] = [
    Rule(r"latent_tokens", "encoder.latents"),
    Rule(r"quantize\.embedding\.weight", "quantizer.codebook"),
    Drop(r"quantize\.embed_prob", "usage average of the training"),
    Rule(_SIDE + r"\.class_embedding", r"\g<side>.class_token", flatten),
    Rule(_SIDE + r"\.positional_embedding", r"\g<side>.positions"),
    Rule(_SIDE + r"\.latent_token_positional_embedding", r"\g<side>.latent_positions"),
    Rule(_SIDE + r"\.ln_(pre|post)\.(weight|bias)", r"\g<side>.norm_\2.\3"),
    Rule(r"encoder\.patch_embed\.(weight|bias)", r"encoder.patch_embed.\1"),
    Rule(r"encoder\.conv_out\.weight", "encoder.project.weight", linear),
    Rule(r"encoder\.conv_out\.bias", "encoder.project.bias"),
    Rule(r"decoder\.decoder_embed\.(weight|bias)", r"decoder.embed.\1"),
    Rule(r"decoder\.mask_token", "decoder.mask_token", flatten),
    *clip_block(_BLOCK, _OURS),
]
TEXT = "decoder.text_guidance_proj.weight"
TEXT_RULES: list[Rule | Drop] = [
    Rule(r"decoder\.text_guidance_proj\.(weight|bias)", r"decoder.text_embed.\1"),
    Rule(r"decoder\.text_guidance_positional_embedding", "decoder.text_positions"),
]
PROXY_HEAD: list[Rule | Drop] = [
    Rule(r"decoder\.ffn\.0\.weight", "decoder.head.hidden.weight", linear),
    Rule(r"decoder\.ffn\.0\.bias", "decoder.head.hidden.bias"),
    Rule(r"decoder\.ffn\.2\.weight", "decoder.head.logits.weight", linear),
    Rule(r"decoder\.ffn\.2\.bias", "decoder.head.logits.bias"),
]
PIXEL_HEAD: list[Rule | Drop] = [
    Rule(r"decoder\.ffn\.0\.weight", "decoder.head.linear.weight", linear),
    Rule(r"decoder\.ffn\.0\.bias", "decoder.head.linear.bias"),
    Rule(r"decoder\.conv_out\.(weight|bias)", r"decoder.head.conv.\1"),
]
