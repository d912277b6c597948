"""What the importers of the SEANet family share: EnCodec, SpeechTokenizer, DM-Codec, WavTokenizer, Mimi."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Rule
from mmtok.importers.vqgan import all_alive

CONV = r"\.(?P<leaf>weight|bias)"
_AT = r"(?P<at>\d+(?:\.block\.\d+|\.shortcut)?)"
_INNER = r"(?:\.conv(?:tr)?){1,2}"


def weight_normed(theirs: str, ours: str) -> list[Rule]:
    """Rules for one layer with or without weight normalization, in either of torch's spellings; `theirs` a pattern."""
    norm = f"{ours}.parametrizations.weight.original"
    return [
        Rule(theirs + CONV, ours + r".\g<leaf>"),
        Rule(theirs + r"\.(?:weight_g|parametrizations\.weight\.original0)", f"{norm}0"),
        Rule(theirs + r"\.(?:weight_v|parametrizations\.weight\.original1)", f"{norm}1"),
    ]


def network(theirs: str, ours: str) -> list[Rule]:
    """Rules for one SEANet encoder or decoder; both are prefixes of its flat list of layers, `theirs` a pattern."""
    return [
        *weight_normed(rf"{theirs}\.{_AT}{_INNER}", rf"{ours}.\g<at>.conv"),
        Rule(rf"{theirs}\.{_AT}(?:\.conv(?:tr)?)?\.norm\.(?P<leaf>weight|bias)", rf"{ours}.\g<at>.norm.\g<leaf>"),
        Rule(rf"{theirs}\.(?P<at>\d+)\.lstm\.(?P<leaf>\w+)", rf"{ours}.\g<at>.lstm.\g<leaf>"),
        Rule(rf"{theirs}\.(?P<at>\d+(?:\.block\.\d+)?)\.alpha", rf"{ours}.\g<at>.alpha"),
    ]


def sizes(state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """Arguments of our SEANet that the weights under `prefix` (an encoder's flat list of layers) tell.

    What shapes cannot tell (causality, padding mode, dilation base) keeps our defaults.
    """
    pattern = re.compile(
        rf"{re.escape(prefix)}\.(\d+)((?:\.block\.\d+|\.shortcut)?){_INNER}"
        r"\.(?:weight|weight_v|parametrizations\.weight\.original1)"
    )
    outer: dict[int, tuple[int, ...]] = {}
    blocks: dict[int, dict[str, tuple[int, ...]]] = {}
    for key, value in state.items():
        if (match := pattern.fullmatch(key)) is None:
            continue
        index, inner = int(match[1]), match[2]
        if inner:
            blocks.setdefault(index, {})[inner] = tuple(value.shape)
        else:
            outer[index] = tuple(value.shape)
    if len(outer) < 3 or not blocks:
        raise ValueError(f"importer: no SEANet under {prefix}: not weights of this system")
    first, *strided, last = (outer[index] for index in sorted(outer))
    block = blocks[max(blocks)]  # the widest: integer division hides less there
    under = [key for key in state if key.startswith(prefix + ".")]
    lstm = [key for key in under if ".lstm.weight_ih_l" in key]
    return {
        "channels": first[1], "dim": last[0], "n_filters": first[0], "ratios": [s[2] // 2 for s in reversed(strided)],
        "n_residual": len(blocks) // len(strided), "kernel": first[2], "last_kernel": last[2],
        "residual_kernel": block[".block.1"][2], "compress": block[".block.1"][1] // block[".block.1"][0],
        "lstm": sum(not key.endswith("_reverse") for key in lstm),
        "bidirectional": any(key.endswith("_reverse") for key in lstm), "conv_shortcut": ".shortcut" in block,
        "snake": any(key.endswith(".alpha") for key in under), "norm": _norm(under),
    }


def residual_vq(theirs: str, ours: str) -> list[Rule]:
    """Rules for the codebooks of EnCodec's family: `theirs` a pattern of one codebook, `ours` its template."""
    names = {"embed": "codebook", "embed_avg": "ema_sums", "cluster_size": "ema_counts"}
    rules = [Rule(rf"{theirs}\.{name}", f"{ours}.{own}") for name, own in names.items()]
    return [*rules, Rule(rf"{theirs}\.inited", f"{ours}.initialized", flag)]


def codebook(size: int, dim: int, kmeans_steps: int = 50) -> Config:
    """Config of one codebook as the family trains it: running means, started by k-means."""
    return {
        "class_path": "mmtok.quantizers.vq.VQ",
        "init_args": {
            "dim": dim, "codebook_size": size, "ema_decay": 0.99, "ema_smoothing": 1e-5, "kmeans_steps": kmeans_steps
        },
    }


def residual(count: int, size: int, dim: int) -> Config:
    """Config of the residual quantizer; gradients as the family trains it (encodec#25)."""
    quantizers = [codebook(size, dim) for _ in range(count)]
    arguments = {"quantizers": quantizers, "through": True}
    return {"class_path": "mmtok.quantizers.residual.Residual", "init_args": arguments}


def add_usage(state: dict[str, Tensor]) -> None:
    """Puts the `usage` of every codebook, which published files do not hold, into a converted state: all alive."""
    for key in [key for key in state if key.endswith(".codebook")]:
        state[key.removesuffix("codebook") + "usage"] = all_alive(state[key])


def codebook_sizes(state: dict[str, Tensor], pattern: str) -> tuple[int, int, int]:
    """(number of codebooks, codes, dim) of the keys that fully match `pattern`."""
    found = [value for key, value in state.items() if re.fullmatch(pattern, key)]
    if not found:
        raise ValueError(f"importer: no key like {pattern}: not weights of this system")
    return len(found), *found[0].shape


def flag(value: Tensor) -> Tensor:
    """[1] float -> a bool without axes."""
    return value.flatten()[0] > 0


def encoder(arguments: dict[str, Any]) -> Config:
    """Config of the encoder."""
    return {"class_path": "mmtok.nn.seanet.SEANetEncoder", "init_args": dict(arguments)}


def decoder(arguments: dict[str, Any]) -> Config:
    """Config of the decoder; its LSTM always runs in one direction."""
    shared = {name: value for name, value in arguments.items() if name != "bidirectional"}
    return {"class_path": "mmtok.nn.seanet.SEANetDecoder", "init_args": shared}


def _norm(keys: list[str]) -> str:
    if any(key.endswith((".weight_g", ".original0")) for key in keys):
        return "weight_norm"
    return "time_group_norm" if any(".norm." in key for key in keys) else "none"
