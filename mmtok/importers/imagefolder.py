"""ImageFolder, XQ-GAN and RobustTok (one code base): `best_ckpt.pt`, `XQGAN-4096.pt` (keys under model or ema).

Models with several scales other than the published lists need their YAML as config.yaml beside the weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, flatten, linear
from mmtok.importers.timm_vit import depth, first, trunk_rules
from mmtok.importers.vqgan import all_alive

SYSTEMS = ("imagefolder_msrq", "imagefolder_msbr", "imagefolder_vq_perturbation")
SCALES = {10: [1, 1, 2, 3, 3, 4, 5, 6, 8, 11]}  # of the published models, by their number
WIDE = 64  # channels of a head of DINOv2


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; scales by the published list of that length, or from the YAML."""
    branches = len({key.split(".")[1] for key in state if key.startswith("quantizes.")})
    place = "quantizes.0." if branches else "quantize."
    dim, width = state["quant_conv.weight"].shape[:2]
    binary = f"{place}scaler" in state
    hits = state.get(f"{place}ema_vocab_hit_SV")
    scales = published.get("v_patch_nums") or []
    if not scales and hits is not None and hits.dim() == 2 and len(hits) > 1:
        if len(hits) not in SCALES:
            raise ValueError(
                f"importer: {place}ema_vocab_hit_SV counts {len(hits)} scales, none of the published lists: put the"
                " YAML, whose v_patch_nums tells them, beside it"
            )
        scales = SCALES[len(hits)]
    side = scales[-1] if scales else round((state["encoder.latent_tokens"].shape[1] / max(1, branches)) ** 0.5)
    out = {
        "branches": max(1, branches), "code_dim": dim, "patch_nums": list(scales) if len(scales) > 1 else [side],
        "codebook_size": 1 << dim if binary else len(state[f"{place}embedding.weight"]), "binary": binary,
        "codebook_norm": True, "quant_resi": 0.5,
        "share_quant_resi": sum(k.startswith(f"{place}quant_resi.") and k.endswith("weight") for k in state),
    }
    if binary:
        scaler = state[f"{place}scaler"]
        out["scale"] = float(scaler[1] / scaler[0]) if len(scaler) > 1 else 1.0
    patch = state["encoder.model.patch_embed.proj.weight"].shape[-1]
    return out | {
        "width": width, "encoder_layers": depth(state, "encoder.model."), "patch": patch,
        "decoder_layers": depth(state, "decoder.model."), "heads": max(1, width // WIDE),
        "grid": round((state["encoder.model.pos_embed"].shape[1] - 1) ** 0.5),
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    mapped = apply(state, rules(len(facts["patch_nums"]) > 1, facts["binary"]))
    for key in [key for key in mapped.state if key.endswith(".codebook")]:
        mapped.state[key.removesuffix("codebook") + "usage"] = all_alive(mapped.state[key])
    path, count = "mmtok.models.image.imagefolder", facts["branches"]
    shared = {"width": facts["width"], "heads": facts["heads"], "grid": facts["grid"], "layer_scale": 1e-5}
    encoder = {
        "trunk": shared | {"layers": facts["encoder_layers"], "patch": facts["patch"], "drop_path": 0.1},
        "dim": facts["code_dim"], "side": facts["patch_nums"][-1], "branches": count,
    }
    decoder = {
        "trunk": shared | {"layers": facts["decoder_layers"], "patch": None, "drop_path": 0.1},
        "dim": count * facts["code_dim"], "patch": facts["patch"],
    }
    for part in (encoder, decoder):
        part["trunk"] = {"class_path": "mmtok.nn.vit_trunk.ViTTrunk", "init_args": part["trunk"]}
    quantizer = member(facts)
    if count > 1:
        product = {"quantizers": [quantizer] * count}
        quantizer = {"class_path": "mmtok.quantizers.split.Product", "init_args": product}
    init_args: Config = {
        "encoder": {"class_path": f"{path}.LatentGridEncoder", "init_args": encoder},
        "quantizer": quantizer,
        "decoder": {"class_path": f"{path}.LatentGridDecoder", "init_args": decoder},
        "size": [facts["grid"] * facts["patch"]] * 2,
    }
    if len(facts["patch_nums"]) > 1:
        coding = {"class_path": "mmtok.keep.GridPrefix"}
        tail = {"share": 0.1, "min_length": min(3, len(facts["patch_nums"])), "coding": coding}
        init_args["tail"] = {"class_path": "mmtok.taildrop.PartialTail", "init_args": tail}
    return Converted(
        {"class_path": f"{path}.ImageFolder", "init_args": init_args}, mapped.state, mapped.source, mapped.dropped
    )


def member(facts: dict[str, Any]) -> Config:
    """The quantizer of one branch."""
    dim, scales = facts["code_dim"], facts["patch_nums"]
    inner = {"dim": dim, "codebook_size": facts["codebook_size"], "revival": 0.0}
    vq = {"class_path": "mmtok.quantizers.vq.VQ", "init_args": inner}
    if len(scales) == 1:
        inner["l2_norm"] = facts["codebook_norm"]
        return vq
    inner["cosine"] = True
    bits = {"bits": dim, "little_endian": True, "entropy_bits": dim}
    phi = {"dim": dim, "count": facts["share_quant_resi"], "strength": facts["quant_resi"]}
    residual = {
        "quantizer": {"class_path": "mmtok.quantizers.lookup_free.BSQ", "init_args": bits} if facts["binary"] else vq,
        "scales": list(scales), "phi": {"class_path": "mmtok.quantizers.scales.SharedPhi", "init_args": phi},
        "gain": facts.get("scale", 1.0),
    }
    config = {"class_path": "mmtok.quantizers.scales.ScaleResidual", "init_args": residual}
    if not facts["binary"]:
        return config
    return {"class_path": "mmtok.quantizers.projected.Normalized", "init_args": {"quantizer": config}}


def rules(scales: bool, binary: bool) -> list[Rule | Drop]:
    """scales: residual quantizers with several; binary: of signs."""
    out: list[Rule | Drop] = [
        Drop(r"(semantic_model|detail_model)\..*", "frozen teacher of the training"),
        Drop(r"sem_linear\..*", "projection of the teacher in training"),
        Drop(r"quantizes?\.(\d+\.)?(ema_vocab_hit_SV|codebook_used)", "usage counts of the training"),
        Drop(r"quantizes?\.(\d+\.)?scaler", "powers of the scales' gain"),
        Drop(r"(encoder|decoder)\.lvl1LC", "which level every place of the sequence has"),
        Rule(r"(encoder|decoder)\.lvl_embed\.weight", r"\1.levels"),
        Rule(r"encoder\.latent_tokens", "encoder.latents", first),
        Rule(r"decoder\.mask_token", "decoder.mask_token", flatten),
        Rule(r"decoder\.to_pixel\.model\.(weight|bias)", r"decoder.pixels.\1"),
        Rule(r"quant_conv\.weight", "encoder.project.weight", linear),
        Rule(r"quant_conv\.bias", "encoder.project.bias"),
        Rule(r"post_quant_conv\.weight", "decoder.embed.weight", linear),
        Rule(r"post_quant_conv\.bias", "decoder.embed.bias"),
        *trunk_rules(r"encoder\.model\.", "encoder.trunk."), *trunk_rules(r"decoder\.model\.", "decoder.trunk."),
    ]
    table, phi = ("quantizer." if scales else "") + "codebook", ("quantizer." if binary else "") + "phi"
    for theirs, ours in ((r"quantizes\.(?P<b>\d+)\.", r"quantizer.members.\g<b>."), (r"quantize\.", "quantizer.")):
        out.append(Rule(theirs + r"embedding\.weight", ours + table))
        out.append(
            Rule(
                theirs + r"quant_resi\.qresi_ls\.(?P<j>\d+)\.(?P<leaf>weight|bias)",
                ours + phi + r".convs.\g<j>.\g<leaf>",
            )
        )
    return out
