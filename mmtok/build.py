"""Configs to tokenizers: `{class_path, init_args}` is instantiated, and may name trusted classes only."""

from __future__ import annotations

import copy
from typing import Any

from mmtok.tokenizer import Tokenizer

Config = dict[str, Any]


def build(config: Config, modules: tuple[str, ...] = ("mmtok",)) -> Tokenizer:
    """A fresh tokenizer from `{class_path, init_args}`; unknown keys are errors that name the key."""
    from jsonargparse import ArgumentParser, Namespace

    check_class_paths(config, modules)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--tokenizer", type=Tokenizer, required=True)
    try:
        parsed = parser.parse_object({"tokenizer": copy.deepcopy(config)})
    except Exception as error:
        raise ValueError(f"tokenizer config: {' '.join(str(error).split())[:400]}") from None
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
