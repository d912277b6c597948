"""Saved tokenizers: a folder with `config.yaml` and `model.safetensors`, a catalogue name, or `hf:owner/name`.

config.yaml holds `format_version`, `tokenizer: {class_path, init_args}` fully resolved, and the `tokenizer_id`.
Only classes of trusted modules are instantiated, and weights are safetensors: nothing is ever unpickled.
"""

from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtok.quantizers.base import Quantizer
from mmtok.tokenizer import Tokenizer

FORMAT_VERSION = 1
CONFIG, WEIGHTS, TABLES = "config.yaml", "model.safetensors", "tables.safetensors"
Config = dict[str, Any]


def load(
    name: str | os.PathLike[str], device: str | torch.device = "cpu", modules: tuple[str, ...] = ("mmtok",)
) -> Tokenizer:
    """A trained tokenizer in eval mode.

    name     a name in the catalogue (`mmtok list`), a folder written by `save`, or hf:owner/name
    modules  top-level packages whose classes a config may name
    ValueError or FileNotFoundError names the file and the mend.
    """
    folder = resolve(name)
    config = read_config(folder / CONFIG)
    tokenizer = build(config["tokenizer"], modules)
    state = _read_weights(folder / WEIGHTS)
    tables = {key: state.pop(key) for key in list(state) if key.startswith("tables.")}
    wanted = tokenizer.state_dict()
    # half-precision storage is a matter of the file; the model computes in its own dtype
    optional = _training_state(tokenizer)
    absent = {key for key in optional if key not in state}
    missing, unknown = sorted(set(wanted) - set(state) - absent), sorted(set(state) - set(wanted))
    file = folder / WEIGHTS
    if missing or unknown:
        raise ValueError(f"{file}: keys missing {missing[:5]}, unknown {unknown[:5]}: not the weights of {CONFIG}")
    for key, value in state.items():
        if value.shape != wanted[key].shape:
            raise ValueError(f"{file}: {key} is {list(value.shape)}, {CONFIG} asks for {list(wanted[key].shape)}")
    tokenizer.load_state_dict(
        {key: state[key].to(value.dtype) if key in state else value for key, value in wanted.items()}
    )
    for quantizer in {optional[key] for key in absent}:
        quantizer.restart_training_state()
    if tables:
        tokenizer.tables = tuple(tables[f"tables.{i}"] for i in range(len(tables)))
    tokenizer.tokenizer_id = config["tokenizer_id"]
    return tokenizer.to(device).eval()


def save(
    tokenizer: Tokenizer, folder: str | os.PathLike[str], dtype: torch.dtype | None = None, training_state: bool = True
) -> Path:
    """Writes config and weights into a new or matching folder and gives the tokenizer its id.

    dtype           stores floating-point weights in this type (torch.float16 halves the file); the live weights are
                    rounded to it too, so that what is in memory makes the same codes as what is loaded
    training_state  also what only training reads (running sums of codebooks); without it, training starts them anew
    """
    if tokenizer.config is None:
        raise ValueError("save: tokenizer.config is not set; build it with mmtok.hub.build(config), or train it")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if dtype is not None:
        for tensor in [*tokenizer.parameters(), *tokenizer.buffers()]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype).to(tensor.dtype)
    state = {key: value.detach().to("cpu").contiguous() for key, value in tokenizer.state_dict().items()}
    if dtype is not None:
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    if not training_state:
        state = {key: value for key, value in state.items() if key not in _training_state(tokenizer)}
    tokenizer.tokenizer_id = fingerprint(state)
    if tokenizer.tables is not None:
        state |= {f"tables.{i}": table.to("cpu", torch.int32) for i, table in enumerate(tokenizer.tables)}
    # clones: safetensors refuses tensors that share memory
    _replace(folder / WEIGHTS, lambda path: save_file({key: value.clone() for key, value in state.items()}, path))
    text = yaml.safe_dump(
        {"format_version": FORMAT_VERSION, "tokenizer_id": tokenizer.tokenizer_id, "tokenizer": tokenizer.config},
        sort_keys=False,
    )
    _replace(folder / CONFIG, lambda path: Path(path).write_text(text))
    return folder


def build(config: Config, modules: tuple[str, ...] = ("mmtok",)) -> Tokenizer:
    """A fresh tokenizer from `{class_path, init_args}`; unknown keys are errors that name the key."""
    from jsonargparse import ArgumentParser, Namespace

    check_class_paths(config, modules)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--tokenizer", type=Tokenizer, required=True)
    try:
        parsed = parser.parse_object({"tokenizer": copy.deepcopy(config)})
    except Exception as error:
        raise ValueError(f"tokenizer config: {_one_line(error)}") from None
    full: Namespace = parsed.tokenizer
    tokenizer: Tokenizer = parser.instantiate_classes(parsed).tokenizer
    tokenizer.config = full.as_dict() if isinstance(full, Namespace) else full
    return tokenizer


def check_class_paths(node: Any, modules: tuple[str, ...]) -> None:
    """ValueError when any `class_path` in a config lies outside the trusted packages."""
    if isinstance(node, dict):
        path = node.get("class_path")
        if path is not None and (not isinstance(path, str) or path.split(".")[0] not in modules):
            raise ValueError(f"class_path {path!r}: a saved config may only name classes of {', '.join(modules)}")
        for value in node.values():
            check_class_paths(value, modules)
    elif isinstance(node, list | tuple):
        for value in node:
            check_class_paths(value, modules)


def resolve(name: str | os.PathLike[str]) -> Path:
    """The folder of a catalogue name, a path, or hf:owner/name (downloaded into the hub cache)."""
    text = os.fspath(name)
    if text.startswith("hf:"):
        return _from_hub(text[3:])
    if Path(text).is_dir():
        return Path(text)
    entry = catalogue().get(text)
    if entry is None:
        known = ", ".join(catalogue()) or "no entries"
        raise ValueError(f"no tokenizer named {text!r}: not a folder, and the catalogue has {known}")
    folder = _checkpoints() / entry["folder"]
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder / WEIGHTS} is missing: reinstall mmtok, or put the file there")
    return folder


def catalogue() -> dict[str, Config]:
    """Name -> entry of `checkpoints/catalogue.yaml`."""
    return yaml.safe_load((_checkpoints() / "catalogue.yaml").read_text()) or {}


def read_config(path: Path) -> Config:
    """The parsed config.yaml of a saved tokenizer; ValueError when it is not one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not a saved tokenizer")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {_one_line(error)}") from None
    if not isinstance(config, dict) or not {"format_version", "tokenizer", "tokenizer_id"} <= set(config):
        raise ValueError(f"{path}: needs format_version, tokenizer and tokenizer_id")
    version = config["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(f"{path}: format_version {version} is newer than this mmtok ({FORMAT_VERSION}): upgrade")
    return config


def fingerprint(state: dict[str, Tensor]) -> str:
    """8 hex digits over names, shapes and bytes of the weights."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key}{list(state[key].shape)}{state[key].dtype}".encode())
        digest.update(state[key].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


def _training_state(tokenizer: Tokenizer) -> dict[str, Quantizer]:
    """Key of each buffer that only training reads -> its quantizer."""
    return {
        f"{name}.{key}": module
        for name, module in tokenizer.named_modules() if isinstance(module, Quantizer)
        for key in module.training_state if hasattr(module, key)
    }  # fmt: skip


def _checkpoints() -> Path:
    import mmtok.checkpoints

    return Path(mmtok.checkpoints.__file__).parent


def _from_hub(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"hf:{repository} needs huggingface_hub: pip install huggingface_hub") from None
    return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS]))


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not a complete saved tokenizer")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not safetensors: {_one_line(error)}") from None


def _replace(path: Path, write: Any) -> None:
    """Writes beside the target and renames, so that a killed process never leaves half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    os.replace(temporary, path)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
