"""EnCodec (arXiv 2210.13438): `encodec_24khz-*.th`, `encodec_48khz-*.th` (no config file), or a transformers folder."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mmtok.importers import seanet
from mmtok.importers.keymap import Config, Converted, Rule, apply

SYSTEMS = ("encodec", "encodec_48k", "encodec_hf", "encodec_48k_hf")


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; the rest from the config, or that of the two released models where there is none."""
    transformers = any(key.startswith("encoder.layers.") for key in state)
    sizes = seanet.sizes(state, "encoder.layers" if transformers else "encoder.model")
    if sizes["bidirectional"]:
        raise ValueError("importer: lstm.*_reverse: both ways, as in SpeechTokenizer (importer speechtokenizer)")
    count, codes, dim = seanet.codebook_sizes(state, CODEBOOK + r"\.embed")
    stereo = sizes["channels"] == 2
    hop = math.prod(sizes["ratios"])
    if transformers:
        rate, causal = published["sampling_rate"], published["use_causal_conv"]
        normalize, seconds, overlap = published["normalize"], published["chunk_length_s"], published["overlap"]
        bits = math.log2(codes) * rate / hop
        depths = [max(1, int(1000 * kbps / bits)) for kbps in published["target_bandwidths"]]
    else:
        released: Config = {
            "sample_rate": 48000 if stereo else 24000, "causal": not stereo, "normalize": stereo,
            "segment": 1.0 if stereo else None, "overlap": 0.01,
            "num_quantizers_per_bandwidth": [n for n in (2, 4, 8, 16, 32) if n <= count],
        }
        released |= {name: published[name] for name in released if name in published}
        rate, causal, normalize = released["sample_rate"], released["causal"], released["normalize"]
        seconds, overlap = released["segment"], released["overlap"]
        depths = released["num_quantizers_per_bandwidth"]
    if normalize != (seconds is not None):
        raise ValueError("importer: EnCodec with a level per clip, or segments without levels, was never released")
    return {
        "seanet": sizes | {"causal": causal}, "num_quantizers": count, "codebook_size": codes, "dim": dim,
        "sample_rate": rate, "segment": None if seconds is None else int(seconds * rate), "overlap": overlap,
        "skip_short": transformers, "depths": depths,
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict; depth drop over the released bandwidths."""
    mapped = apply(state, RULES)
    seanet.add_usage(mapped.state)
    args: Config = {
        "encoder": seanet.encoder(facts["seanet"]),
        "quantizer": seanet.residual(facts["num_quantizers"], facts["codebook_size"], facts["dim"]),
        "decoder": seanet.decoder(facts["seanet"]),
        "sample_rate": facts["sample_rate"],
        "tail": {
            "class_path": "mmtok.taildrop.ChoiceTail",
            "init_args": {"choices": facts["depths"], "coding": DEPTH, "per_batch": True},
        },
    }
    if facts["segment"] is None:
        config = {"class_path": "mmtok.models.audio.codec.WaveCodec", "init_args": args | {"end": "layers"}}
    else:
        args |= {name: facts[name] for name in ("segment", "overlap", "skip_short")}
        config = {"class_path": "mmtok.models.audio.segmented.SegmentedCodec", "init_args": args}
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


DEPTH: Config = {"class_path": "mmtok.keep.Prefix", "init_args": {"axis": 1}}
CODEBOOK = r"quantizer\.(?:vq\.)?layers\.(\d+)\._?codebook"
RULES: list[Rule] = [
    *seanet.network(r"(?P<side>encoder|decoder)\.(?:model|layers)", r"\g<side>.layers"),
    *seanet.residual_vq(CODEBOOK, r"quantizer.depths.\1"),
]
