"""VidTok, causal FSQ models (arXiv 2412.13061): `vidtok_fsq_causal_*.ckpt` (keys under state_dict) and its YAML as
`config.yaml`, v1.0 and v1.1."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply

SYSTEMS = ("vidtok_v1_0", "vidtok_v1_1")


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes of the published YAML; v1.1 is told by its module's name."""
    try:
        params = published["model"]["params"]
        target = params["encoder_config"]["target"]
        levels = params["regularizer_config"]["params"]["levels"]
        sizes = params["encoder_config"]["params"]
    except (KeyError, TypeError):
        raise ValueError(
            "importer vidtok: the published YAML of an FSQ model must lie beside the weights as config.yaml"
        ) from None
    if "Causal3D" not in target:
        raise ValueError(f"importer vidtok: {target} is not causal; only the causal FSQ models are read")
    return {"sizes": sizes, "levels": list(levels), "v1_1": "v1_1" in target}


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    sizes, count = facts["sizes"], len(facts["sizes"]["ch_mult"])
    mapped = apply(state, rules(count))
    parts: Config = {"pad_mode": "first_frame" if facts["v1_1"] else "zeros"}
    if facts["v1_1"] and sizes.get("interpolation_mode", "nearest") == "trilinear":
        parts["look_ahead"] = True
    shared: Config = {
        "parts": {"class_path": "mmtok.nn.video_parts.VidTokParts", "init_args": parts},
        "z_channels": len(facts["levels"]), "channels": sizes["ch"], "channel_mult": list(sizes["ch_mult"]),
    }
    space_down = sizes.get("spatial_ds", list(range(count - 1)))
    time_down = sizes.get("tempo_ds", [count - 2, count - 3])
    space_up, time_up = sizes.get("spatial_us", list(range(1, count))), sizes.get("tempo_us", [1, 2])
    down = [[1 + (i in time_down), 1 + (i in space_down)] for i in range(count - 1)]
    up = [[1 + (i in time_up), 1 + (i in space_up)] for i in reversed(range(1, count))]
    blocks = sizes["num_res_blocks"]
    config = {
        "class_path": "mmtok.models.video.conv.ConvVideoTokenizer",
        "init_args": {
            "encoder": {
                "class_path": "mmtok.nn.conv_video.ConvEncoder3d",
                "init_args": shared | {"num_res_blocks": blocks, "strides": down},
            },
            "quantizer": {
                "class_path": "mmtok.quantizers.fsq.FSQ",
                "init_args": {"levels": facts["levels"], "entropy_temperature": 0.01},
            },
            "decoder": {
                "class_path": "mmtok.nn.conv_video.ConvDecoder3d",
                "init_args": shared | {"num_res_blocks": blocks + 1, "strides": up},
            },
            "size": [17, 256, 256], "rate": 3.0,
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def rules(levels: int) -> list[Rule | Drop]:
    """Decoder levels are stored from full resolution down, ours run from the lowest up."""
    out: list[Rule | Drop] = [
        Drop(r"loss\..*", "discriminator, LPIPS and log variance of the training"),
        Drop(r"regularization\..*", "lists that follow from the levels"),
        Rule(r"(encoder|decoder)\.(conv_in|conv_out)\.conv\.(weight|bias)", r"\1.\2.conv.\3"),
        Rule(r"(encoder|decoder)\.norm_out\.norm\.(weight|bias)", r"\1.norm_out.\2"),
        *block(r"(?P<side>encoder|decoder)\.mid\.block_1", r"\g<side>.mid.0", r"\.conv"),
        *block(r"(?P<side>encoder|decoder)\.mid\.block_2", r"\g<side>.mid.2", r"\.conv"),
        Rule(r"(encoder|decoder)\.mid\.attn_1\.norm\.norm\.(weight|bias)", r"\1.mid.1.norm.\2"),
        Rule(r"(encoder|decoder)\.mid\.attn_1\.(q|k|v)\.conv\.(weight|bias)", r"\1.mid.1.\2.\3"),
        Rule(r"(encoder|decoder)\.mid\.attn_1\.proj_out\.conv\.(weight|bias)", r"\1.mid.1.out.\2"),
    ]
    for i in range(levels):
        for side, theirs, ours in (("encoder", "down", i), ("decoder", "up", levels - 1 - i)):
            sample, level = f"{theirs}sample", f"{side}.levels.{ours}"
            space, time = rf"{side}\.{theirs}\.{i}", rf"{side}\.{theirs}_temporal\.{i}"
            out += block(space + r"\.block\.(?P<j>\d+)", level + r".blocks.\g<j>.layers.0", "")
            out += block(time + r"\.block\.(?P<j>\d+)", level + r".blocks.\g<j>.layers.1", r"\.conv")
            out += [
                Rule(rf"{space}\.{sample}\.conv\.weight", f"{level}.resample.space.conv.weight", to_3d),
                Rule(rf"{space}\.{sample}\.conv\.bias", f"{level}.resample.space.conv.bias"),
                Rule(rf"{time}\.{sample}\.conv\.conv\.(weight|bias)", rf"{level}.resample.time.conv.\1"),
                Rule(rf"{time}\.{sample}\.mix_factor", f"{level}.resample.mix"),
            ]
    return out


def block(theirs: str, ours: str, inner: str) -> list[Rule | Drop]:
    """Rules for one residual block over space, time or both; `inner` is what follows a convolution's name."""
    return [
        Rule(theirs + r"\.(?P<part>norm[12])\.norm\.(?P<leaf>weight|bias)", ours + r".\g<part>.\g<leaf>"),
        Rule(theirs + rf"\.(?P<part>conv[12]){inner}\.weight", ours + r".\g<part>.conv.weight", to_3d),
        Rule(theirs + rf"\.(?P<part>conv[12]){inner}\.bias", ours + r".\g<part>.conv.bias"),
        Rule(theirs + rf"\.nin_shortcut{inner}\.weight", ours + r".shortcut.weight", to_3d),
        Rule(theirs + rf"\.nin_shortcut{inner}\.bias", ours + ".shortcut.bias"),
    ]


def to_3d(weight: Tensor) -> Tensor:
    """Kernels over time [O, I, k] -> [O, I, k, 1, 1], over space [O, I, k, k] -> [O, I, 1, k, k]; 3D as they are."""
    if weight.dim() == 3:
        return weight[..., None, None]
    return weight[:, :, None] if weight.dim() == 4 else weight
