"""Published checkpoints -> our tokenizers: one module a family, each a declarative key map.

A module has
    SYSTEMS                        names of the published systems it reads
    facts(published, state)        sizes and flags, from the published config and the weights' shapes
    convert(state, facts)          -> Converted(config, state, source, dropped)
"""

from __future__ import annotations

import importlib
import os
import pkgutil

from mmtok.importers.containers import read
from mmtok.importers.keymap import Converted, check_complete
from mmtok.tokenizer import Tokenizer


def load(family: str, path: str | os.PathLike[str]) -> Tokenizer:
    """A published checkpoint as a tokenizer in eval mode; `mmtok.hub.save` then writes it in our format.

    family  module of this package: "titok", "maskgit_vqgan", "taming", ... (`families()` lists them)
    path    weights file, or a folder with weights and config as published
    ValueError names the file, the key and the mend.
    """
    return instantiate(read_published(family, path))


def instantiate(converted: Converted) -> Tokenizer:
    """The tokenizer of `read_published`, in eval mode; ValueError when keys or shapes differ from the model's."""
    from mmtok.hub import build

    tokenizer = build(converted.config)
    check_complete(converted.state, tokenizer.state_dict())
    tokenizer.load_state_dict(converted.state)
    return tokenizer.eval()


def read_published(family: str, path: str | os.PathLike[str]) -> Converted:
    """Config and weights of a published checkpoint, with what became of every key."""
    if family not in families():
        raise ValueError(f"importer {family!r} does not exist: choose one of {', '.join(families())}")
    module = importlib.import_module(f"mmtok.importers.{family}")
    published, state = read(path)
    return module.convert(state, module.facts(published, state))


def families() -> list[str]:
    """Names of the modules that read published checkpoints: those with SYSTEMS."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name for name in names if hasattr(importlib.import_module(f"mmtok.importers.{name}"), "SYSTEMS"))
