"""A saved tokenizer: a folder with `config.yaml` and `model.safetensors`.

config.yaml holds `format_version`, `tokenizer: {class_path, init_args}` fully resolved, and the `tokenizer_id`.
Only classes of trusted modules are instantiated, and weights are safetensors: nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtok.bounds import on_meta
from mmtok.build import Config, parse
from mmtok.code_tables import CodeTables, is_table
from mmtok.quantizers.base import Quantizer
from mmtok.tokenizer import Tokenizer

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "config.yaml", "model.safetensors"


def load_folder(
    folder: Path, device: str | torch.device = "cpu", modules: tuple[str, ...] = ("mmtok",)
) -> Tokenizer:
    """The tokenizer of a folder written by `save`, in eval mode; ValueError or FileNotFoundError names the file."""
    config = read_config(folder / CONFIG)
    make, file = parse(config["tokenizer"], modules), folder / WEIGHTS
    shapes = _read_shapes(file)
    if modules == ("mmtok",):
        _check(on_meta(make, len(shapes), file.stat().st_size), shapes, file)
        tokenizer = make()
    else:  # classes of others need not know meta tensors
        tokenizer = make()
        _check(tokenizer, shapes, file)
    state = _read_weights(file)
    tables = {key: state.pop(key) for key in list(state) if is_table(key)}
    wanted = tokenizer.state_dict()
    # half-precision storage is a matter of the file; the model computes in its own dtype
    optional = _training_state(tokenizer)
    absent = {key for key in optional if key not in state}
    tokenizer.load_state_dict(
        {key: state[key].to(value.dtype) if key in state else value for key, value in wanted.items()}
    )
    for quantizer in {optional[key] for key in absent}:
        quantizer.restart_training_state()
    if tables:
        try:
            tokenizer.tables = CodeTables.from_state(tables, tokenizer.quantizer.codebook_sizes)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    tokenizer.tokenizer_id = config["tokenizer_id"]
    return tokenizer.to(device).eval()


def save(
    tokenizer: Tokenizer, folder: str | os.PathLike[str], dtype: torch.dtype | None = None, training_state: bool = True
) -> Path:
    """Writes config and weights into a new or matching folder and gives the tokenizer its id.

    Weights that did not change since they were loaded keep their id, whatever file they came from, so that tokens of
    both copies are read by either.

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
    if not _is_id_of(tokenizer.tokenizer_id, state, _training_state(tokenizer)):
        tokenizer.tokenizer_id = fingerprint(state)
    if tokenizer.tables is not None:
        state |= tokenizer.tables.state()
    # clones: safetensors refuses tensors that share memory
    _replace(folder / WEIGHTS, lambda path: save_file({key: value.clone() for key, value in state.items()}, path))
    text = yaml.safe_dump(
        {"format_version": FORMAT_VERSION, "tokenizer_id": tokenizer.tokenizer_id, "tokenizer": tokenizer.config},
        sort_keys=False,
    )
    _replace(folder / CONFIG, lambda path: Path(path).write_text(text))
    return folder


def read_config(path: Path) -> Config:
    """The parsed config.yaml of a saved tokenizer; ValueError when it is not one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not a saved tokenizer")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
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


def _check(tokenizer: Tokenizer, shapes: Mapping[str, Sequence[int]], file: Path) -> None:
    """ValueError unless the tensors of the file are those of the tokenizer."""
    wanted = {key: value.shape for key, value in tokenizer.state_dict().items()}
    found = {key: shape for key, shape in shapes.items() if not is_table(key)}
    missing = sorted(set(wanted) - set(found) - set(_training_state(tokenizer)))
    unknown = sorted(set(found) - set(wanted))
    if missing or unknown:
        raise ValueError(f"{file}: keys missing {missing[:5]}, unknown {unknown[:5]}: not the weights of {CONFIG}")
    for key, shape in found.items():
        if tuple(shape) != tuple(wanted[key]):
            raise ValueError(f"{file}: {key} is {list(shape)}, {CONFIG} asks for {list(wanted[key])}")


def _is_id_of(name: str, state: dict[str, Tensor], training: Container[str]) -> bool:
    """Whether a file of exactly these weights has this id: in any type that holds them, with or without `training`."""
    used = {key: value for key, value in state.items() if key not in training}
    for part in (state, used) if name else ():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            stored = {key: value.to(dtype) if value.is_floating_point() else value for key, value in part.items()}
            held = all(torch.equal(stored[key].to(value.dtype), value) for key, value in part.items())
            if held and fingerprint(stored) == name:
                return True
    return False


def _training_state(tokenizer: Tokenizer) -> dict[str, Quantizer]:
    """Key of each buffer that only training reads -> its quantizer."""
    return {
        f"{name}.{key}": module
        for name, module in tokenizer.named_modules() if isinstance(module, Quantizer)
        for key in module.training_state if hasattr(module, key)
    }  # fmt: skip


def _read_shapes(path: Path) -> dict[str, list[int]]:
    """Key -> shape, from the header of a safetensors file."""
    with _whole(path), safe_open(path, "pt") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118


def _read_weights(path: Path) -> dict[str, Tensor]:
    with _whole(path):
        return load_file(path)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not a complete saved tokenizer")
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not safetensors: {_one_line(error)}") from None


def _replace(path: Path, write: Any) -> None:
    """Writes beside the target and renames, so that a killed process never leaves half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.touch()
    mode = temporary.stat().st_mode
    write(temporary)
    temporary.chmod(mode)  # safetensors makes files that nobody else may read
    os.replace(temporary, path)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
