"""Open-MAGVIT2 for video: `video_128_262144.ckpt` (keys under state_dict) and its YAML as `config.yaml`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply
from mmtok.importers.vqgan import count, level_widths, take_averages

SYSTEMS = ("open_magvit2_video",)


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes off the weights; clip length and side from the YAML where there is one."""
    named = {key.replace(".conv_1.", "."): value for key, value in state.items()}
    widths = level_widths(named, "encoder.down.{}.block.0")
    channels = state["encoder.conv_in.conv_1.weight"].shape[0]
    dd = published.get("ddconfig") or published.get("model", {}).get("init_args", {}).get("ddconfig", {})
    mult = [width // channels for width in widths]
    return {
        "channels": channels, "channel_mult": mult, "num_res_blocks": count(named, "encoder.down.0.block.{}"),
        "z_channels": state["encoder.conv_out.conv_1.weight"].shape[0], "image_size": dd.get("resolution", 128),
        "strides": [[1 if m == 1 else 2, 2] for m in mult[:-1]],
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; moving averages where the file has them."""
    state, dropped = take_averages(state)
    names = ("channels", "channel_mult", "num_res_blocks", "z_channels", "strides")
    sizes = {name: facts[name] for name in names} | {"clip_norm": True}
    mapped = apply(state, _rules(len(facts["channel_mult"])))
    config: Config = {
        "class_path": "mmtok.models.video.magvit2.Magvit2Video",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.magvit3d.MagvitEncoder3d", "init_args": sizes},
            "quantizer": {
                "class_path": "mmtok.quantizers.lookup_free.LFQ",
                "init_args": {"bits": facts["z_channels"], "entropy_eps": 1e-5},
            },
            "decoder": {"class_path": "mmtok.nn.magvit3d.MagvitDecoder3d", "init_args": sizes},
            "size": [17, facts["image_size"], facts["image_size"]],
        },
    }
    return Converted(config, mapped.state, mapped.source, dropped | mapped.dropped)


def _rules(levels: int) -> list[Rule | Drop]:
    leaf = r"\.(?P<leaf>weight|bias)"
    rules: list[Rule | Drop] = [
        Rule(r"(encoder|decoder)\.conv_in\.conv_1\.(weight|bias)", r"\1.conv_in.conv.\2"),
        Rule(r"encoder\.conv_out\.conv_1\.(weight|bias)", r"encoder.conv_out.\1"),
        Rule(r"decoder\.conv_out\.conv_1\.(weight|bias)", r"decoder.conv_out.conv.\1"),
        Rule(r"(encoder|decoder)\.norm_out\.(weight|bias)", r"\1.norm_out.norm.\2"),
        *_block(r"(?P<side>encoder|decoder)\.mid_block\.(?P<n>\d+)", r"\g<side>.mid.\g<n>"),
        *_block(r"encoder\.down\.(?P<i>\d+)\.block\.(?P<n>\d+)", r"encoder.levels.\g<i>.blocks.\g<n>"),
        Rule(r"encoder\.down\.(?P<i>\d+)\.downsample\.conv_1" + leaf,
             r"encoder.levels.\g<i>.resample.conv.conv.\g<leaf>"),
        Drop(r"loss\..*|quantize\..*", "only training reads it"),
    ]  # fmt: skip
    for i in range(levels):  # theirs count from full resolution, ours in the order of work
        ours = levels - 1 - i
        rules += _block(rf"decoder\.up\.{i}\.block\.(?P<n>\d+)", rf"decoder.levels.{ours}.blocks.\g<n>")
        rules += [
            Rule(rf"decoder\.up\.{i}\.upsample\.conv1\.conv_1" + leaf,
                 rf"decoder.levels.{ours}.resample.conv.conv.\g<leaf>"),
            Rule(rf"decoder\.adaptive\.{i}\.gamma" + leaf, rf"decoder.adaptive.{ours}.scale.\g<leaf>"),
            Rule(rf"decoder\.adaptive\.{i}\.beta" + leaf, rf"decoder.adaptive.{ours}.shift.\g<leaf>"),
        ]  # fmt: skip
    return rules


def _block(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(theirs + r"\.(?P<part>norm1|norm2)\.(?P<leaf>weight|bias)", ours + r".\g<part>.norm.\g<leaf>"),
        Rule(theirs + r"\.(?P<part>conv1|conv2)\.conv_1\.weight", ours + r".\g<part>.conv.weight"),
        Rule(theirs + r"\.nin_shortcut\.conv_1\.weight", ours + ".shortcut.weight"),
    ]
