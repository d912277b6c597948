"""The containers in which checkpoints are published. Nothing is unpickled beyond tensors and plain values."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmtok.importers.torchscript import read_torchscript

WEIGHTS = (
    "model.safetensors", "diffusion_pytorch_model.safetensors", "weights.safetensors", "pytorch_model.bin", "last.ckpt",
    "autoencoder.jit",
)  # fmt: skip
PARTS = (  # of LaVIT, one file a network
    "eva_vitg_psz14.bin", "tokenizer_encoder.bin", "tokenizer_decoder.bin", "highres_tokenizer_decoder.bin"
)  # fmt: skip
CONFIGS = ("config.json", "model.yaml", "config.yaml")
NESTED = ("state_dict", "model", "ema")
BESIDE = {"encodec_24khz-d7cc33bc.th": "feature_extractor.encodec."}  # EnCodec, from whose codes Vocos decodes
HALVES = ("encoder.jit", "decoder.jit")  # of one model (Cosmos)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(published config, {} when there is none; flat state dict) of a weights file or a folder that holds one.

    The config is the file called config.json, model.yaml or config.yaml beside the weights. State dicts nested under
    `state_dict`, `model` or `ema` are taken out, in this order. Where every network has a file of its own (`PARTS`),
    their names become prefixes. In a folder, another model's file that belongs to it (`BESIDE`) is read along.
    """
    path = Path(path).expanduser()
    file, others = path, {}
    if path.is_dir() and all((path / name).is_file() for name in HALVES):
        config = next((path / name for name in CONFIGS if (path / name).is_file()), None)
        encoder, decoder = (read_torchscript(path / name) for name in HALVES)
        return ({} if config is None else read_config(config)), encoder | decoder
    parts = [path / name for name in PARTS if (path / name).is_file()]
    if parts:
        return {}, {f"{part.stem}.{key}": value for part in parts for key, value in read_state(part).items()}
    if path.is_dir():
        found = [path / name for name in WEIGHTS if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path}: holds none of {', '.join(WEIGHTS)}; name the weights file itself")
        file = found[0]
        others = {prefix: path / name for name, prefix in BESIDE.items() if (path / name).is_file()}
    elif not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    config = next((file.parent / name for name in CONFIGS if (file.parent / name).is_file()), None)
    state = read_state(file)
    for prefix, other in others.items():
        state |= {f"{prefix}{key}": value for key, value in read_state(other).items()}
    return ({} if config is None else read_config(config)), state


def read_config(path: Path) -> dict[str, Any]:
    """A JSON or YAML mapping."""
    try:
        config = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not valid {path.suffix[1:]} ({reason}): fetch the published file again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a mapping of settings: fetch the published file again")
    return config


def read_state(path: Path) -> dict[str, Tensor]:
    """The flat state dict of a .safetensors file, a .jit archive or a torch file read with `weights_only=True`."""
    if path.suffix == ".jit":
        return read_torchscript(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: damaged or not safetensors ({reason}): download it again") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: cannot be read as plain tensors ({' '.join(str(error).split())[:120]}...). Where you trust the"
            " file, save its state dict alone with safetensors.torch.save_file and import that"
        ) from None
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        # one state dict a network (BigCodec): their names become prefixes
        content = {f"{name}.{key}": value for name, part in content.items() for key, value in part.items()}
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: holds no flat state dict, neither at its top nor under {', '.join(NESTED)}")
    return content
