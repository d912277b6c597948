"""Tokenizers by name: in the catalogue (shipped or published), a saved folder, or `hf:owner/name`."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from mmtok.build import Config, build, check_class_paths
from mmtok.catalogue import catalogue, checkpoints, home, published, unknown
from mmtok.folder import CONFIG, FORMAT_VERSION, WEIGHTS, fingerprint, load_folder, read_config, save
from mmtok.published import from_hub, imported
from mmtok.tokenizer import Tokenizer

__all__ = [
    "CONFIG", "FORMAT_VERSION", "WEIGHTS", "Config", "build", "catalogue", "check_class_paths", "fingerprint", "home",
    "load", "read_config", "resolve", "save",
]


def load(
    name: str | os.PathLike[str], device: str | torch.device = "cpu", modules: tuple[str, ...] = ("mmtok",),
    accept_licence: bool = False, optimize: bool = False, dtype: torch.dtype = torch.float32,
) -> Tokenizer:
    """A trained tokenizer in eval mode.

    name            a name in the catalogue (`mmtok list`, `mmtok list --remote`), a folder written by `save`, or
                    hf:owner/name; published checkpoints are downloaded and converted once, into MMTOK_HOME
    modules         top-level packages whose classes a config may name
    accept_licence  consent to weights that are not for commercial use (or MMTOK_ACCEPT_LICENCE=<name>)
    optimize        for encoding and decoding alone, faster on a CPU: see `mmtok.optimize`
    dtype           with optimize: torch.bfloat16 runs convolutions in half precision, so some codes differ
    ValueError or OSError names the file and the mend.
    """
    if dtype != torch.float32 and not optimize:
        raise ValueError("load(dtype=...): only with optimize=True")
    tokenizer = load_folder(resolve(name, accept_licence), device, modules)
    if optimize:
        from mmtok.optimize import optimize as optimized

        return optimized(tokenizer, dtype)
    return tokenizer


def resolve(name: str | os.PathLike[str], accept_licence: bool = False) -> Path:
    """The folder of a catalogue name, a path, or hf:owner/name; downloads where needed."""
    text = os.fspath(name)
    if text.startswith("hf:"):
        return _from_hub(text.removeprefix("hf:"), accept_licence)
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(
            f"no tokenizer named {text!r}: it is a file; mmtok import SYSTEM {path} --out DIR makes a published"
            " checkpoint a folder that loads"
        )
    raw = catalogue().get(text)
    if raw is None:
        raise unknown(text)
    if "folder" not in raw:
        return imported(published({text: raw})[text], accept_licence)
    folder = checkpoints() / raw["folder"]
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder / WEIGHTS} is missing: reinstall mmtok, or put the file there")
    return folder


def _from_hub(repository: str, accept_licence: bool) -> Path:
    """A repository of the catalogue, imported; or any repository that holds a folder of ours."""
    entries = [entry for entry in published(catalogue()).values() if repository in entry.repositories]
    if len(entries) == 1:
        return imported(entries[0], accept_licence)
    if entries:
        names = ", ".join(entry.name for entry in entries)
        raise ValueError(f"hf:{repository} holds several tokenizers: load one by its name: {names}")
    if repository.count("/") != 1:
        raise ValueError(f"hf:{repository}: expected hf:owner/name")
    target = home() / "downloads" / repository.replace("/", "--")
    if (target / CONFIG).is_file() and (target / WEIGHTS).is_file():  # put there by hand
        return target
    try:
        files = [from_hub(repository, name, target / name) for name in (CONFIG, WEIGHTS)]
    except OSError as error:
        if "holds no such file" not in str(error):
            raise
        url = f"https://huggingface.co/{repository}"
        raise ValueError(
            f"hf:{repository} is neither a tokenizer saved by mmtok ({CONFIG}, {WEIGHTS}) nor in the catalogue"
            f" (mmtok list --remote). Fetch its weights from {url} and run mmtok import SYSTEM FILE --out DIR"
        ) from None
    return files[0].parent
