"""DAC (arXiv 2306.06546): `weights_{44,24,16}khz_*.pth` of descript-audio-codec, or a transformers folder."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from mmtok.importers.encodec import DEPTH
from mmtok.importers.keymap import Config, Converted, Rule, apply, linear
from mmtok.importers.seanet import CONV, add_usage, codebook_sizes, weight_normed

SYSTEMS = ("dac", "dac_hf")
RELEASED = {9: 44100, 32: 24000, 12: 16000, 18: 44100}  # codebooks -> Hz


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; the rate from the config, or from the number of codebooks of the released models."""
    transformers = "encoder.conv1.weight" in state
    count, codes, dim = codebook_sizes(state, r"quantizer\.quantizers\.\d+\.codebook\.weight")
    rate = published["sampling_rate"] if transformers else published.get("sample_rate", RELEASED.get(count))
    if rate is None:
        raise ValueError(f"importer: no DAC with {count} codebooks was released: put sample_rate into config.json")
    stem, latent, down, up, width = (
        ("encoder.conv1.weight", "encoder.conv2.weight", r"encoder\.block\.(\d+)\.conv1\.weight",
         r"decoder\.block\.(\d+)\.conv_t1\.weight", "decoder.conv1.weight")
        if transformers else
        ("encoder.block.0.weight_v", "quantizer.quantizers.0.out_proj.weight_v",
         r"encoder\.block\.(\d+)\.block\.4\.weight_v", r"decoder\.model\.(\d+)\.block\.1\.weight_v",
         "decoder.model.0.weight_v")
    )  # fmt: skip
    return {
        "normed": not transformers, "width": state[stem].shape[0], "dim": state[latent].shape[0],
        "strides": strides(state, down), "decoder_width": state[width].shape[0], "decoder_strides": strides(state, up),
        "num_quantizers": count, "codebook_size": codes, "codebook_dim": dim, "sample_rate": rate,
        "dropout": published.get("quantizer_dropout", 0.5),
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; depth drop over the first share of a batch."""
    stages = len(facts["strides"])
    rules = [*transformers_rules(stages), *FACTORISED] if not facts["normed"] else [*package_rules(), *FACTORISED]
    mapped = apply(state, rules)
    add_usage(mapped.state)
    encoder = {"width": facts["width"], "strides": facts["strides"], "dim": facts["dim"], "normed": facts["normed"]}
    decoder = {
        "dim": facts["dim"], "width": facts["decoder_width"], "strides": facts["decoder_strides"],
        "normed": facts["normed"],
    }
    quantizers = [
        factorised(facts["codebook_size"], facts["codebook_dim"], facts["dim"], facts["normed"])
        for _ in range(facts["num_quantizers"])
    ]
    config: Config = {
        "class_path": "mmtok.models.audio.codec.WaveCodec",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.dac.DACEncoder", "init_args": encoder},
            "quantizer": {
                "class_path": "mmtok.quantizers.residual.Residual",
                "init_args": {"quantizers": quantizers, "through": True},
            },
            "decoder": {"class_path": "mmtok.nn.dac.DACDecoder", "init_args": decoder},
            "sample_rate": facts["sample_rate"],
            "tail": {
                "class_path": "mmtok.taildrop.PartialTail",
                "init_args": {"share": facts["dropout"], "coding": DEPTH},
            },
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def factorised(codes: int, dim: int, latent: int, normed: bool) -> Config:
    """Config of one factorised codebook: unit vectors compared, gradients, no revival."""
    vq = {"dim": dim, "codebook_size": codes, "cosine": True, "revival": 0.0}
    inner = {"class_path": "mmtok.quantizers.vq.VQ", "init_args": vq}
    return {
        "class_path": "mmtok.quantizers.projected.Projected",
        "init_args": {"quantizer": inner, "dim": latent, "weight_norm": normed},
    }


def strides(state: dict[str, Tensor], pattern: str) -> list[int]:
    """Half the kernels of the weights that match, in the order of the number in the key."""
    found = {int(m[1]): value.shape[-1] // 2 for key, value in state.items() if (m := re.fullmatch(pattern, key))}
    if not found:
        raise ValueError(f"importer: no key like {pattern}: not weights of this system")
    return [found[index] for index in sorted(found)]


def factorised_rules(theirs: str, ours: str) -> list[Rule]:
    """Rules for one factorised codebook; its 1x1 convolutions become linear layers."""
    projections = weight_normed(rf"{theirs}\.(?P<way>in|out)_proj", rf"{ours}.project_\g<way>")
    return [
        Rule(rf"{theirs}\._?codebook\.weight", f"{ours}.quantizer.codebook"),
        *(Rule(rule.pattern, rule.to, _matrix) for rule in projections),
    ]


def package_rules(side: str = r"(?P<side>encoder|decoder)\.(?:block|model)", ours: str = r"\g<side>") -> list[Rule]:
    """The package nests `block` where we nest `layers`; `side` is a pattern, `ours` the template of our network."""
    unit = rf"{ours}.layers.\g<i>"
    at = {
        rf"{side}\.(?P<i>\d+)": unit,
        rf"{side}\.(?P<i>\d+)\.block\.(?P<j>\d+)": rf"{unit}.layers.\g<j>",
        rf"{side}\.(?P<i>\d+)\.block\.(?P<j>\d+)\.block\.(?P<k>\d+)": rf"{unit}.layers.\g<j>.layers.\g<k>",
    }
    rules: list[Rule] = []
    for theirs, own in at.items():
        act = rf"{theirs}\.(?P<leaf>(?:act\.)?(?:alpha|beta))"
        rules += [*weight_normed(theirs, own), Rule(act, rf"{own}.\g<leaf>")]
    return rules


def transformers_rules(stages: int, prefix: str = "") -> list[Rule]:
    """Named parts of transformers -> places in our lists; weights are folded. `prefix` stands before their names."""
    rules: list[Rule] = []

    def part(theirs: str, ours: str) -> None:
        act = rf"{prefix}{theirs}\.(?P<leaf>(?:act\.)?(?:alpha|beta))"
        rules.extend([Rule(prefix + theirs + CONV, ours + r".\g<leaf>"), Rule(act, ours + r".\g<leaf>")])

    for side, first_unit, ends in (("encoder", 0, ("snake1", "conv1")), ("decoder", 2, ("snake1", "conv_t1"))):
        part(rf"{side}\.conv1", f"{side}.layers.0")
        part(rf"{side}\.snake1", f"{side}.layers.{stages + 1}")
        part(rf"{side}\.conv2", f"{side}.layers.{stages + 2}")
        for stage in range(stages):
            theirs, ours = rf"{side}\.block\.{stage}", f"{side}.layers.{stage + 1}.layers"
            for unit in range(3):
                for place, name in enumerate(("snake1", "conv1", "snake2", "conv2")):
                    part(rf"{theirs}\.res_unit{unit + 1}\.{name}", f"{ours}.{first_unit + unit}.layers.{place}")
            for place, name in enumerate(ends):
                part(rf"{theirs}\.{name}", f"{ours}.{(3 - 3 * (first_unit > 0)) + place}")
    return rules


def _matrix(value: Tensor) -> Tensor:
    return linear(value) if value.dim() == 3 else value


FACTORISED: list[Rule] = factorised_rules(r"quantizer\.quantizers\.(?P<n>\d+)", r"quantizer.depths.\g<n>")
