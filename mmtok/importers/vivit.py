"""OmniTokenizer (arXiv 2406.09399) and C-ViViT of phenaki-pytorch (Phenaki, arXiv 2210.02399).

The published weights were trained with a reshape that mixes time and space, so they are loaded with `legacy_reshape`.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply
from mmtok.importers.vqgan import all_alive

SYSTEMS = ("omnitokenizer_vq", "phenaki_cvivit_lfq", "phenaki_cvivit_vq")


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes off the weights; the size of patches where they are not square, from the config."""
    omni = "codebook.embeddings" in state
    enc, dec = ("encoder.", "decoder.") if omni else ("", "")
    try:
        first = state[f"{enc}to_patch_emb_first_frame.2.weight"]
        rest = state[f"{enc}to_patch_emb.2.weight"]
    except KeyError as error:
        raise ValueError(f"importer vivit: no key {error}: not weights of this system") from None
    side = published.get("patch_size", round((first.shape[1] / 3) ** 0.5))
    side = [side, side] if isinstance(side, int) else side
    stems = {"enc": f"{enc}enc_", "dec": f"{dec}dec_"}
    found: dict[str, Any] = {
        "omni": omni, "dim": first.shape[0], "patch": [rest.shape[1] // first.shape[1], *side],
        "kinds": {part: _kinds(state, f"{stem}spatial_transformer") for part, stem in stems.items()},
        "temporal": len(_kinds(state, f"{stems['enc']}temporal_transformer")),
    }  # fmt: skip
    attention = f"{stems['enc']}temporal_transformer.layers.0.1"
    found["head"] = state[f"{attention}.q_scale"].shape[0]
    found["heads"] = state[f"{attention}.to_q.weight"].shape[0] // found["head"]
    tables = [value for key, value in state.items() if key.endswith("relative_position_bias_table")]
    found["window"] = (round(tables[0].shape[0] ** 0.5) + 1) // 2 if tables else 8
    found["size"] = published.get("image_size", published.get("resolution", 256 if omni else 128))
    if omni:
        found["codebook"] = list(state["codebook.embeddings"].shape)
    elif "vq._codebook.embed" in state:
        found["codebook"] = list(state["vq._codebook.embed"].shape[1:])
    else:
        found["bits"] = state["vq.project_in.weight"].shape[0]
    return found


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    omni = facts["omni"]
    shared = {name: facts[name] for name in ("dim", "patch", "temporal", "heads", "head", "window")}
    shared |= {"legacy_reshape": True}
    shared |= {"amplitude": 0.5} if omni else {"conv": False, "rope": False, "bias": True, "alibi": True}
    size = facts["size"] if isinstance(facts["size"], list) else [facts["size"]] * 2
    args: Config = {
        side: {
            "class_path": f"mmtok.models.video.vivit.ViViT{side.capitalize()}",
            "init_args": shared | {"kinds": facts["kinds"][side[:3]]},
        }
        for side in ("encoder", "decoder")
    }
    args |= {
        "quantizer": _quantizer(facts),
        "quant_conv": omni, "size": [17 if omni else 11, *size], "unit_range": not omni,
    }
    mapped = apply(_both(state, omni), [*_layers(omni), *(OMNI if omni else PHENAKI)])
    at = "quantizer.quantizer" if omni else "quantizer"
    if f"{at}.codebook" in mapped.state and f"{at}.usage" not in mapped.state:
        mapped.state[f"{at}.usage"] = all_alive(mapped.state[f"{at}.codebook"])
    config = {"class_path": "mmtok.models.video.vivit.ViViTTokenizer", "init_args": args}
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _quantizer(facts: dict[str, Any]) -> Config:
    if "bits" in facts:
        lfq = {"bits": facts["bits"], "little_endian": False}
        inner = {"class_path": "mmtok.quantizers.lookup_free.LFQ", "init_args": lfq}
        args = {"quantizer": inner, "dim": facts["dim"], "weight_norm": False}
        return {"class_path": "mmtok.quantizers.projected.Projected", "init_args": args}
    codes, dim = facts["codebook"]
    book = {"dim": dim, "codebook_size": codes, "revival": 0.0}
    if not facts["omni"]:
        return {"class_path": "mmtok.quantizers.vq.VQ", "init_args": book | {"l2_norm": True, "ema_decay": 0.8}}
    inner = {
        "class_path": "mmtok.quantizers.vq.VQ", "init_args": book | {"ema_decay": 0.99, "ema_smoothing": 1e-7},
    }  # fmt: skip
    return {"class_path": "mmtok.quantizers.projected.Normalized", "init_args": {"quantizer": inner}}


def _kinds(state: dict[str, Tensor], prefix: str) -> str:
    """A letter a layer: w where there is a table of window biases."""
    found = {m[1] for key in state if (m := re.match(re.escape(prefix) + r"\.layers\.(\d+)\.", key))}
    window = "{}.layers.{}.1.relative_position_bias_table"
    return "".join("w" if window.format(prefix, n) in state else "t" for n in sorted(found, key=int))


def _both(state: dict[str, Tensor], omni: bool) -> dict[str, Tensor]:
    """C-ViViT has one position network for both halves: here each half holds it."""
    if omni:
        return state
    out = dict(state)
    for key in [key for key in state if key.startswith("spatial_rel_pos_bias.")]:
        value = out.pop(key)
        out |= {f"{side}_{key}": value.clone() for side in ("enc", "dec")}
    return out


def _layers(omni: bool) -> list[Rule | Drop]:
    rules: list[Rule | Drop] = []
    for side, ours in (("enc", "encoder"), ("dec", "decoder")):
        prefix = rf"{ours}\.{side}_" if omni else rf"{side}_"
        layer = prefix + r"(?P<axis>spatial|temporal)_transformer\.layers\.(?P<n>\d+)"
        own = rf"{ours}.\g<axis>.layers.\g<n>"
        leaf = r"\.(?P<leaf>weight|bias)"
        rules += [
            Drop(layer + r"\.1\.(context_norm\..*|null_kv|spatial_rel_pos_bias\..*)", "unused by the reference"),
            Drop(layer + r"\.1\.relative_position_index", "indices, made anew"),
            Rule(layer + r"\.0\.dsconv" + leaf, own + r".conv.conv.\g<leaf>"),
            Rule(layer + r"\.1\.norm\.gamma", own + ".attention.norm.weight"),
            Rule(layer + r"\.1\.norm\.beta", own + ".attention.norm.bias"),
            Rule(layer + r"\.1\.(?P<which>q|k)_scale", own + r".attention.\g<which>_scale"),
            Rule(layer + r"\.1\.to_(?P<which>q|kv|out)\.weight", own + r".attention.\g<which>.weight"),
            Rule(layer + r"\.1\.qkv\.weight", own + ".attention.qkv.weight"),
            Rule(layer + r"\.1\.proj" + leaf, own + r".attention.out.\g<leaf>"),
            Rule(layer + r"\.1\.relative_position_bias_table", own + ".attention.bias.table"),
            Rule(layer + r"\.3\.0" + leaf, own + r".mlp.norm.\g<leaf>"),
            Rule(layer + r"\.3\.1\.weight", own + ".mlp.up.weight"),
            Rule(layer + r"\.3\.4\.weight", own + ".mlp.down.weight"),
            Rule(prefix + r"(?P<axis>spatial|temporal)_transformer\.norm_out\.gamma", rf"{ours}.\g<axis>.norm.weight"),
            Rule(prefix + r"(?P<axis>spatial|temporal)_transformer\.norm_out\.beta", rf"{ours}.\g<axis>.norm.bias"),
            Rule(rf"{side}_spatial_rel_pos_bias\.net\.(?P<n>\d)(?:\.0)?" + leaf,
                 rf"{ours}.spatial.bias.layers.\g<n>.\g<leaf>"),
        ]  # fmt: skip
    encoder, decoder = (r"encoder\.", r"decoder\.") if omni else ("", "")
    for stem, ours in (("to_patch_emb_first_frame", "first"), ("to_patch_emb", "rest")):
        for index, part in (("1", "norm_in"), ("2", "linear"), ("3", "norm_out")):
            rules.append(Rule(rf"{encoder}{stem}\.{index}\.(weight|bias)", rf"encoder.{ours}.{part}.\1"))
    for head, ours in (("to_pixels_first_frame", "first"), ("to_pixels", "rest")):
        rules.append(Rule(rf"{decoder}{head}\.0\.(weight|bias)", rf"decoder.{ours}.\1"))
    return rules


def _kernel(value: Tensor) -> Tensor:
    """Linear layer as a 1x1x1 convolution."""
    return value[:, :, None, None, None]


OMNI: list[Rule | Drop] = [
    Rule(r"pre_vq_conv\.1\.weight", "quant_conv.weight", _kernel),
    Rule(r"pre_vq_conv\.1\.bias", "quant_conv.bias"),
    Rule(r"post_vq_conv\.1\.weight", "post_quant_conv.weight", _kernel),
    Rule(r"post_vq_conv\.1\.bias", "post_quant_conv.bias"),
    Rule(r"codebook\.embeddings", "quantizer.quantizer.codebook"),
    Rule(r"codebook\.N", "quantizer.quantizer.ema_counts"),
    Rule(r"codebook\.z_avg", "quantizer.quantizer.ema_sums"),
    Rule(r"codebook\.codebook_usage", "quantizer.quantizer.usage"),
    Drop(r"(image_discriminator|video_discriminator|perceptual_model)\..*", "only training reads it"),
]
PHENAKI: list[Rule | Drop] = [
    Rule(r"vq\.project_(in|out)\.(weight|bias)", r"quantizer.project_\1.\2"),
    Rule(r"vq\._codebook\.embed", "quantizer.codebook", lambda value: value[0]),
    Rule(r"vq\._codebook\.cluster_size", "quantizer.ema_counts", lambda value: value[0]),
    Rule(r"vq\._codebook\.embed_avg", "quantizer.ema_sums", lambda value: value[0]),
    Drop(r"vq\._codebook\.initted|vq\.(mask|zero|codebook)", "constants"),
    Drop(r"(discr|vgg)\..*", "only training reads it"),
]
