"""diffusers' AutoencoderKL: the image VAE beneath FlexTok (EPFL-VILAB/flextok_vae_c16), as a `LatentVAE`.

A VAE has no codes, so this is a part, not a system: `python -m mmtok.training.flextok_vae` puts it into a FlexTok.
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from mmtok.importers.containers import read
from mmtok.importers.keymap import Config, Mapped, Rule, apply


def read_vae(path: str | os.PathLike[str]) -> tuple[Config, dict[str, Tensor]]:
    """{"class_path", "init_args"} of a LatentVAE and its weights, from a folder with config.json and weights."""
    published, state = read(path)
    if "block_out_channels" not in published:
        raise ValueError(f"{path}: config.json of an AutoencoderKL must lie beside the weights")
    mapped = convert(state)
    return config_of(published, "quant_conv.weight" in state), mapped.state


def convert(state: dict[str, Tensor]) -> Mapped:
    """Weights under our names."""
    return apply(state, RULES)


def config_of(published: dict[str, Any], quant_conv: bool) -> Config:
    """Our config from diffusers' config.json."""
    widths, blocks = published["block_out_channels"], published.get("layers_per_block", 1)
    if any(width % widths[0] for width in widths):
        raise ValueError(f"importer autoencoder_kl: block_out_channels {widths} are not multiples of the first")
    shared = {
        "channels": widths[0], "channel_mult": [width // widths[0] for width in widths],
        "groups": published.get("norm_num_groups", 32),
    }
    channels = published["latent_channels"]
    path = "mmtok.nn.conv2d"
    encoder = shared | {"z_channels": 2 * channels, "num_res_blocks": blocks}
    decoder = shared | {"z_channels": channels, "num_res_blocks": blocks + 1}
    return {
        "class_path": "mmtok.models.image.flextok.LatentVAE",
        "init_args": {
            "encoder": {"class_path": f"{path}.ConvEncoder2d", "init_args": encoder},
            "decoder": {"class_path": f"{path}.ConvDecoder2d", "init_args": decoder},
            "scale": published.get("scaling_factor", 0.18215), "quant_conv": quant_conv,
        },
    }


def _kernel(value: Tensor) -> Tensor:
    """Linear [O, I] -> 1x1 convolution."""
    return value if value.dim() == 4 else value[..., None, None]


def _res(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(theirs + r"\.(?P<part>norm1|conv1|norm2|conv2)\.(?P<leaf>weight|bias)", ours + r".\g<part>.\g<leaf>"),
        Rule(theirs + r"\.conv_shortcut\.(?P<leaf>weight|bias)", ours + r".shortcut.\g<leaf>"),
    ]


_SIDE = r"(?P<side>encoder|decoder)"
_MID = _SIDE + r"\.mid_block\.attentions\.0\."
RULES = [
    Rule(r"(quant_conv|post_quant_conv)\.(weight|bias)", r"\1.\2"),
    Rule(_SIDE + r"\.(?P<part>conv_in|conv_out)\.(?P<leaf>weight|bias)", r"\g<side>.\g<part>.\g<leaf>"),
    Rule(_SIDE + r"\.conv_norm_out\.(?P<leaf>weight|bias)", r"\g<side>.norm_out.\g<leaf>"),
    *_res(_SIDE + r"\.(?:down|up)_blocks\.(?P<i>\d+)\.resnets\.(?P<j>\d+)", r"\g<side>.levels.\g<i>.blocks.\g<j>"),
    Rule(
        _SIDE + r"\.(?:down|up)_blocks\.(?P<i>\d+)\.(?:down|up)samplers\.0\.conv\.(?P<leaf>weight|bias)",
        r"\g<side>.levels.\g<i>.resample.conv.\g<leaf>",
    ),
    *_res(_SIDE + r"\.mid_block\.resnets\.0", r"\g<side>.mid.0"),
    *_res(_SIDE + r"\.mid_block\.resnets\.1", r"\g<side>.mid.2"),
    Rule(_MID + r"group_norm\.(?P<leaf>weight|bias)", r"\g<side>.mid.1.norm.\g<leaf>"),
    Rule(_MID + r"to_(?P<part>q|k|v)\.weight", r"\g<side>.mid.1.\g<part>.weight", _kernel),
    Rule(_MID + r"to_(?P<part>q|k|v)\.bias", r"\g<side>.mid.1.\g<part>.bias"),
    Rule(_MID + r"to_out\.0\.weight", r"\g<side>.mid.1.out.weight", _kernel),
    Rule(_MID + r"to_out\.0\.bias", r"\g<side>.mid.1.out.bias"),
]
