"""SpeechTokenizer (arXiv 2308.16692) and DM-Codec (2410.15017): a state dict with config.json beside it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmtok.importers import seanet
from mmtok.importers.encodec import CODEBOOK, DEPTH
from mmtok.importers.encodec import RULES as ENCODEC
from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply

SYSTEMS = ("speechtokenizer", "speechtokenizer_snake", "dm_codec")


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; the rate is that of the config, 16 kHz in everything released."""
    sizes = seanet.sizes(state, "encoder.model")
    if not sizes["bidirectional"]:
        raise ValueError("importer: no lstm.*_reverse: one way only, as in a file of EnCodec (importer encodec)")
    count, codes, dim = seanet.codebook_sizes(state, CODEBOOK + r"\.embed")
    semantic = state["transform.weight"].shape[0] if "transform.weight" in state else None
    return {
        "seanet": sizes | {"causal": False}, "num_quantizers": count, "codebook_size": codes, "dim": dim,
        "sample_rate": published.get("sample_rate", 16000), "semantic_dim": semantic,
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; the published models were trained at full depth only."""
    mapped = apply(state, RULES)
    seanet.add_usage(mapped.state)
    config: Config = {
        "class_path": "mmtok.models.audio.distilled.DistilledCodec",
        "init_args": {
            "encoder": seanet.encoder(facts["seanet"]),
            "quantizer": seanet.residual(facts["num_quantizers"], facts["codebook_size"], facts["dim"]),
            "decoder": seanet.decoder(facts["seanet"]),
            "sample_rate": facts["sample_rate"],
            "semantic_dim": facts["semantic_dim"],
            "tail": {"class_path": "mmtok.taildrop.PartialTail", "init_args": {"share": 0.0, "coding": DEPTH}},
            "end": "layers",
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


RULES: list[Rule | Drop] = [*ENCODEC, Rule(r"transform\.(weight|bias)", r"transform.\1")]
