"""Published checkpoints -> our tokenizers: one module a family, each a declarative key map.

A module has
    SYSTEMS                        names of the published systems it reads
    facts(published, state)        sizes and flags, from the published config and the weights' shapes
    convert(state, facts)          -> Converted(config, state, source, dropped)
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
from collections.abc import Iterator

from mmtok.build import build
from mmtok.importers.containers import read
from mmtok.importers.keymap import Config, Converted, check_complete
from mmtok.tokenizer import Tokenizer


def load(family: str, path: str | os.PathLike[str]) -> Tokenizer:
    """A published checkpoint as a tokenizer in eval mode; `mmtok.hub.save` then writes it in our format.

    family  module of this package: "titok", "maskgit_vqgan", "taming", ... (`families()` lists them)
    path    weights file, or a folder with weights and config as published
    ValueError names the system, the file or key, and the mend, in one line.
    """
    return instantiate(read_published(family, path), family)


def instantiate(converted: Converted, family: str = "") -> Tokenizer:
    """The tokenizer of `read_published`, in eval mode; ValueError when keys or shapes differ from the model's."""
    with _naming(family):
        tokenizer = build(converted.config)
        check_complete(converted.state, tokenizer.state_dict(), converted.source)
    tokenizer.load_state_dict(converted.state)
    return tokenizer.eval()


def read_published(family: str, path: str | os.PathLike[str], published: Config | None = None) -> Converted:
    """Config and weights of a published checkpoint, with what became of every key.

    published  the published settings; None reads the config file beside the weights, where there is one
    """
    if family not in families():
        raise ValueError(f"importer {family!r} does not exist: choose one of {', '.join(families())}")
    module = importlib.import_module(f"mmtok.importers.{family}")
    try:
        beside, state = read(path)
    except ValueError as error:  # of a damaged file, which names its own mend
        raise ValueError(f"importer {family}: {error}") from None
    with _naming(family):
        return module.convert(state, module.facts(beside if published is None else published, state))


@contextlib.contextmanager
def _naming(family: str) -> Iterator[None]:
    """Errors name the system; a key that is not there is the user's file, not our bug."""
    mend = "is it a file of another system, or a part of one? The systems are " + ", ".join(families())
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"importer {family}: neither the weights nor the config beside them hold {error}: {mend}"
        ) from None
    except ValueError as error:
        if not family:
            raise
        text = " ".join(str(error).split()).removeprefix(f"importer {family}: ").removeprefix("importer: ")
        raise ValueError(f"importer {family}: {text}; {mend}") from None
    except (RuntimeError, IndexError, ZeroDivisionError, StopIteration) as error:  # of shapes that do not fit together
        where = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"importer {family}: the shapes of the file do not fit together ({where}): {mend}") from None


def families() -> list[str]:
    """Names of the modules that read published checkpoints: those with SYSTEMS."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name for name in names if hasattr(importlib.import_module(f"mmtok.importers.{name}"), "SYSTEMS"))
