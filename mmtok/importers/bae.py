"""BAE, the binary autoencoder of ELM (arXiv 2410.16257): `binaryae_ema.th`, a flat state dict, no config file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, attention, linear

SYSTEMS = ("bae",)
PUBLISHED = {"nf": 128, "ch_mult": [1, 1, 2, 2, 4], "res_blocks": 2, "attn_resolutions": [16], "gen_mul": 1.0}
UNUSED = "1x1 convolution of a block that keeps its width: never used"


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Bits and dimension off the weights; the rest is equal in every published file (256 pixels)."""
    bits, dim = state["ae.quantize.embed.weight"].shape
    return PUBLISHED | {"bits": bits, "emb_dim": dim, "image_size": 256, "norm_first": True}


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    levels = len(facts["ch_mult"])
    attn = [i for i in range(levels) if facts["image_size"] >> i in facts["attn_resolutions"]]
    shared = {
        "z_channels": facts["emb_dim"], "channel_mult": list(facts["ch_mult"]), "attn_levels": attn,
        "num_res_blocks": facts["res_blocks"], "out_activation": False,
    }
    encoder = shared | {"channels": facts["nf"]}
    decoder = shared | {"channels": round(facts["nf"] * facts["gen_mul"]), "norm_first": facts["norm_first"]}
    mapped = apply(state, [*RULES, *_flat("encoder", encoder), *_flat("generator", decoder)])
    quantizer = {"dim": facts["emb_dim"], "bits": facts["bits"]}
    config = {
        "class_path": "mmtok.models.image.conv.ConvTokenizer",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.conv2d.ConvEncoder2d", "init_args": encoder},
            "quantizer": {"class_path": "mmtok.quantizers.bernoulli.BernoulliBits", "init_args": quantizer},
            "decoder": {"class_path": "mmtok.nn.conv2d.ConvDecoder2d", "init_args": decoder},
            "size": [facts["image_size"]] * 2,
            "quant_conv": False,
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


RULES: list[Rule | Drop] = [
    Drop(r"(disc|perceptual)\..*", "discriminator and LPIPS of the training"),
    Drop(r"ae\.generator\.logsigma\..*", "head that the published model never uses"),
    Rule(r"ae\.quantize\.embed\.weight", "quantizer.embedding"),
    Rule(r"ae\.quantize\.proj\.0\.weight", "quantizer.project.weight", linear),
    Rule(r"ae\.quantize\.proj\.0\.bias", "quantizer.project.bias"),
]


def _flat(side: str, sizes: Config) -> list[Rule | Drop]:
    """Rules for a side whose layers lie in one list without names, counted here as they were appended."""
    ours = "encoder" if side == "encoder" else "decoder"
    out: list[Rule | Drop] = []
    number = 0

    def theirs() -> str:
        nonlocal number
        number += 1
        return rf"ae\.{side}\.blocks\.{number - 1}"

    def leaf(name: str, inner: str = "") -> None:
        out.append(Rule(theirs() + inner + r"\.(weight|bias)", rf"{ours}.{name}.\1"))

    def res(name: str, keeps_width: bool) -> None:
        block = theirs()
        out.append(Rule(block + r"\.(norm1|conv1|norm2|conv2)\.(weight|bias)", rf"{ours}.{name}.\1.\2"))
        shortcut = block + r"\.conv_out\.(weight|bias)"
        out.append(Drop(shortcut, UNUSED) if keeps_width else Rule(shortcut, rf"{ours}.{name}.shortcut.\1"))

    def middle() -> None:
        res("mid.0", True)
        out.extend(attention(theirs(), f"{ours}.mid.1"))
        res("mid.2", True)

    mults, last = sizes["channel_mult"], len(sizes["channel_mult"]) - 1
    order = list(range(last + 1)) if side == "encoder" else list(reversed(range(last + 1)))
    if sizes.get("norm_first"):
        leaf("norm_in")
    leaf("conv_in")
    if side == "generator":
        middle()
    width = 1 if side == "encoder" else mults[-1]
    for place, i in enumerate(order):
        for j in range(sizes["num_res_blocks"]):
            res(f"levels.{place}.blocks.{j}", width == mults[i])
            width = mults[i]
            if i in sizes["attn_levels"]:
                out.extend(attention(theirs(), f"{ours}.levels.{place}.attentions.{j}"))
        if place < last:
            leaf(f"levels.{place}.resample.conv", r"\.conv")
    if side == "encoder":
        middle()
    leaf("norm_out")
    leaf("conv_out")
    return out
