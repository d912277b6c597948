"""ElasticTok FSQ (arXiv 2410.08368): flax parameters by slash-separated names, saved once as safetensors.

The authors publish a stream of msgpack; their own loader turns it into a flat mapping of arrays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Rule, apply, flatten

SYSTEMS = ("elastictok_fsq",)
RELEASED: Config = {
    "patch_size": [1, 8, 8], "frames_per_block": 4, "num_attention_heads": 8, "theta": 5e6, "size": [4, 256, 256],
}  # fmt: skip
LEVELS = [8, 8, 8, 5, 5, 5]


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes off the weights; patch, heads and rotary base from the config, or those of the release."""
    found = RELEASED | {name: published[name] for name in RELEASED if name in published}
    block = "{}/{}_blocks/scan_decoder/feed_forward/w1/kernel"
    try:
        layers = {side: state[block.format(side, side)].shape for side in ("encoder", "decoder")}
    except KeyError as error:
        raise ValueError(f"importer elastictok: no key {error}: not weights of this system") from None
    return found | {
        "width": layers["encoder"][1], "hidden": layers["encoder"][2],
        "layers": {side: shape[0] for side, shape in layers.items()},
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict: layers apart, kernels transposed, q, k and v together."""
    heads = facts["num_attention_heads"]
    mapped = apply(_layers(state, heads), RULES)
    shared = {
        "dim": len(LEVELS), "frames": facts["frames_per_block"], "patch": facts["patch_size"], "width": facts["width"],
        "hidden": facts["hidden"], "heads": heads, "rope_base": facts["theta"],
    }
    config: Config = {
        "class_path": "mmtok.models.video.elastictok.ElasticTok",
        "init_args": {
            side: {
                "class_path": f"mmtok.models.video.elastictok.Elastic{side.capitalize()}",
                "init_args": shared | {"layers": facts["layers"][side]},
            }
            for side in ("encoder", "decoder")
        }
        | {
            "quantizer": {
                "class_path": "mmtok.quantizers.fsq.FSQ",
                "init_args": {"levels": LEVELS, "margin": -1e-3, "tan_shift": True},
            },
            "tail": {
                "class_path": "mmtok.taildrop.UniformTail",
                "init_args": {"coding": {"class_path": "mmtok.keep.BlockPrefix"}},
            },
            "size": facts["size"],
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _layers(state: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Stacked layers one by one as `<side>/<n>/<part>`, with the three projections of attention as `wqkv`."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        side, *path = key.split("/")
        if "scan_decoder" not in path or path[-1] != "kernel":
            out[key] = value
            continue
        part = "/".join(path[2:-1])
        for index, layer in enumerate(value):
            name = f"{side}/{index}/{part}"
            if part in ("attention/wk", "attention/wv"):
                continue
            if part == "attention/wq":
                stem = key.removesuffix("wq/kernel")
                k, v = (state[f"{stem}{other}/kernel"][index].T for other in ("wk", "wv"))
                out[name.replace("wq", "wqkv")] = torch.cat([_halves(layer.T, heads), _halves(k, heads), v])
            else:
                out[name] = layer
    return out


def _halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k whose neighbouring channels are paired -> rows whose halves are paired."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _turned(value: Tensor) -> Tensor:
    return value.T


_LAYER, _OURS = r"(?P<side>encoder|decoder)/(?P<n>\d+)", r"\g<side>.transformer.layers.\g<n>"
RULES = [
    Rule(r"encoder/in_proj/kernel", "encoder.patch_embed.weight", _turned),
    Rule(r"encoder/is_kept_embed", "encoder.kept", flatten),
    Rule(r"encoder/is_masked_embed", "encoder.dropped", flatten),
    Rule(r"encoder/pre_quant/kernel", "encoder.project.weight", _turned),
    Rule(r"decoder/post_quant/kernel", "decoder.embed.weight", _turned),
    Rule(r"decoder/out_proj/kernel", "decoder.pixels.weight", _turned),
    Rule(r"(encoder|decoder)/ln_f/kernel", r"\1.norm.weight"),
    Rule(_LAYER + r"/attention_norm", _OURS + ".norm1.weight"),
    Rule(_LAYER + r"/ffn_norm", _OURS + ".norm2.weight"),
    Rule(_LAYER + r"/attention/wqkv", _OURS + ".qkv.weight"),
    Rule(_LAYER + r"/attention/wo", _OURS + ".out.weight", _turned),
    Rule(_LAYER + r"/feed_forward/w1", _OURS + ".mlp.gate.weight", _turned),
    Rule(_LAYER + r"/feed_forward/w2", _OURS + ".mlp.down.weight", _turned),
    Rule(_LAYER + r"/feed_forward/w3", _OURS + ".mlp.up.weight", _turned),
]
