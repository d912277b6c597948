"""Vocos on EnCodec's codes (arXiv 2306.00814): `pytorch_model.bin` of charactr/vocos-encodec-24khz.

That file holds the decoder and the codebooks; as in the authors' code, encoder and codebooks come from EnCodec's own
file, `encodec_24khz-d7cc33bc.th`, beside it. charactr/vocos-mel-24khz turns spectrograms into sound and makes no codes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmtok.importers import seanet
from mmtok.importers.encodec import DEPTH
from mmtok.importers.keymap import Config, Converted, Drop, apply
from mmtok.importers.wavtokenizer import VOCOS, vocos_sizes

SYSTEMS = ("vocos_encodec",)
TABLE = "feature_extractor.codebook_weights"
ENCODEC = r"feature_extractor\.encodec\."
LAYERS = ENCODEC + r"quantizer\.vq\.layers\."
BANDWIDTHS = [1.5, 3.0, 6.0, 12.0]  # kbps


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; bandwidths and padding from config.yaml, or those that were released."""
    if TABLE not in state:
        raise ValueError(f"importer: no key {TABLE}: vocos-mel-24khz makes no codes, and other files are not Vocos")
    if "backbone.norm.scale.weight" not in state:
        raise ValueError("importer: no key backbone.norm.scale.weight: its norms do not depend on the bandwidth")
    if not any(key.startswith("feature_extractor.encodec.") for key in state):
        raise ValueError(
            "importer: the file holds no feature_extractor.encodec.*: put EnCodec's encodec_24khz-d7cc33bc.th into its"
            " folder, and import the folder"
        )
    sizes = seanet.sizes(state, "feature_extractor.encodec.encoder.model")
    _, codes, dim = seanet.codebook_sizes(state, LAYERS + r"\d+\._codebook\.embed")
    count = len(state[TABLE]) // codes
    features, head = (published.get(part, {}).get("init_args", {}) for part in ("feature_extractor", "head"))
    bandwidths = features.get("bandwidths", BANDWIDTHS)
    return {
        "seanet": sizes | {"causal": True}, "codebook_size": codes, "dim": dim, "sample_rate": 24000,
        # the widest takes all codebooks of the table, the others their share
        "depths": [max(1, round(count * kbps / max(bandwidths))) for kbps in bandwidths],
        "vocos": vocos_sizes(state) | {"padding": head.get("padding", "same")},
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; depth drop over the bandwidths."""
    depths = facts["depths"]
    used = "|".join(map(str, range(depths[-1])))
    mapped = apply(state, [
        Drop(ENCODEC + r"decoder\..+", "EnCodec's own decoder"),
        Drop(LAYERS + rf"(?!(?:{used})\.)\d+\..+", "finer than the widest bandwidth"),
        Drop(TABLE.replace(".", r"\."), "EnCodec's codebooks once more"),
        *seanet.network(ENCODEC + r"encoder\.model", "encoder.layers"),
        *seanet.residual_vq(LAYERS + r"(\d+)\._codebook", r"quantizer.depths.\1"),
        *VOCOS,
    ])  # fmt: skip
    _check_table(state, depths[-1])
    seanet.add_usage(mapped.state)
    hop = math.prod(facts["seanet"]["ratios"])
    config: Config = {
        "class_path": "mmtok.models.audio.vocos.VocosCodec",
        "init_args": {
            "encoder": seanet.encoder(facts["seanet"]),
            "quantizer": seanet.residual(depths[-1], facts["codebook_size"], facts["dim"]),
            "decoder": {"class_path": "mmtok.nn.vocos.VocosDecoder", "init_args": facts["vocos"] | {"hop": hop}},
            "sample_rate": facts["sample_rate"], "depths": depths, "end": "layers",
            "tail": {
                "class_path": "mmtok.taildrop.ChoiceTail",
                "init_args": {"choices": depths, "coding": DEPTH, "per_batch": True},
            },
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def _check_table(state: dict[str, Tensor], count: int) -> None:
    """The decoder's table must be EnCodec's, which says what the codes are; it was frozen in everything released."""
    names = [f"feature_extractor.encodec.quantizer.vq.layers.{i}._codebook.embed" for i in range(count)]
    if not torch.equal(torch.cat([state[name] for name in names]), state[TABLE]):
        raise ValueError(f"importer: {TABLE} is not {names[0]} and so on, end to end: the EnCodec is another one")
