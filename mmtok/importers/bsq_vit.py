"""BSQ-ViT (arXiv 2406.07548): torch files with the keys under state_dict, no config file needed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply, clip_block

SYSTEMS = ("bsq_vit",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; heads are 64 wide in every published model."""
    plain = {key.replace("module.", ""): value for key, value in state.items()}
    patches = plain["encoder.conv1.weight"]
    if patches.dim() != 2:
        raise ValueError(f"importer: encoder.conv1.weight is {list(patches.shape)}, here a matrix over flat patches")
    width, pixels = patches.shape
    patch = round((pixels / 3) ** 0.5)
    if pixels != 3 * patch**2:
        raise ValueError(f"importer: encoder.conv1.weight is {list(patches.shape)}: {pixels} is no square of 3 colours")
    layers = 1 + max(int(key.split(".")[3]) for key in plain if key.startswith("encoder.transformer.resblocks."))
    vit = {
        "width": width, "layers": layers, "heads": width // 64, "mlp_ratio": 4, "patch_size": patch,
        "image_size": round(plain["encoder.positional_embedding"].shape[0] ** 0.5) * patch,
    }
    decoder = vit | {"dim_ffn_output": plain["decoder.ffn.0.weight"].shape[0]}
    return {"vit": vit, "decoder_vit": decoder, "bits": plain["quant_embed.weight"].shape[0]}


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    patch = facts["vit"]["patch_size"]

    def kernel(value: Tensor) -> Tensor:
        """Linear over (channel, row, column) of a patch -> convolution."""
        return value.unflatten(1, (3, patch, patch))

    mapped = apply(state, [Rule(r"(?:module\.)*encoder\.conv1\.weight", "encoder.patch_embed.weight", kernel), *RULES])
    path = "mmtok.models.image.vit"
    head = {"hidden": facts["decoder_vit"]["dim_ffn_output"]}
    config = {
        "class_path": f"{path}.ViTTokenizer",
        "init_args": {
            "encoder": {"class_path": f"{path}.ViTEncoder", "init_args": _sizes(facts["vit"], facts["bits"])},
            "quantizer": {"class_path": "mmtok.quantizers.lookup_free.BSQ", "init_args": {"bits": facts["bits"]}},
            "decoder": {
                "class_path": f"{path}.ViTDecoder", "init_args": _sizes(facts["decoder_vit"], facts["bits"]) | head
            },
            "size": [facts["vit"]["image_size"]] * 2,
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _sizes(vit: dict[str, Any], dim: int) -> Config:
    sizes = {name: vit[name] for name in ("width", "layers", "heads", "mlp_ratio")}
    return sizes | {"dim": dim, "patch": vit["patch_size"], "grid": vit["image_size"] // vit["patch_size"]}


_SIDE = r"(?:module\.)*(?P<side>encoder|decoder)"
_BLOCK, _OURS = _SIDE + r"\.transformer\.resblocks\.(?P<i>\d+)", r"\g<side>.transformer.blocks.\g<i>"
RULES: list[Rule | Drop] = [
    Drop(r"(?:module\.)*quantize\.(?:group_)?basis", "powers of two, which follow from the number of bits"),
    Rule(_SIDE + r"\.positional_embedding", r"\g<side>.positions"),
    Rule(_SIDE + r"\.ln_(?P<n>pre|post)\.(?P<leaf>weight|bias)", r"\g<side>.norm_\g<n>.\g<leaf>"),
    Rule(r"(?:module\.)*quant_embed\.(weight|bias)", r"encoder.project.\1"),
    Rule(r"(?:module\.)*post_quant_embed\.(weight|bias)", r"decoder.embed.\1"),
    Rule(r"(?:module\.)*decoder\.ffn\.0\.(weight|bias)", r"decoder.hidden.\1"),
    Rule(r"(?:module\.)*decoder\.conv_out\.(weight|bias)", r"decoder.pixels.\1"),
    *clip_block(_BLOCK, _OURS),
]
