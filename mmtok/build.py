"""Configs to tokenizers: `{class_path, init_args}` is instantiated, and may name trusted classes only."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import yaml

from mmtok.tokenizer import Tokenizer

Config = dict[str, Any]
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
MAX_NODES, MAX_DEPTH = 100_000, 100  # of a config; the largest that ship have a few hundred


def build(config: Config, modules: tuple[str, ...] = ("mmtok",)) -> Tokenizer:
    """A fresh tokenizer from `{class_path, init_args}`; unknown keys are errors that name the key."""
    return parse(config, modules)()


def parse(config: Config, modules: tuple[str, ...] = ("mmtok",)) -> Callable[[], Tokenizer]:
    """What makes tokenizers of a config, every call a fresh one. ValueError names the key or class that is wrong."""
    from jsonargparse import ArgumentParser, Namespace

    check_class_paths(config, modules)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--tokenizer", type=Tokenizer, required=True)
    try:
        parsed = parser.parse_object({"tokenizer": copy.deepcopy(config)})
    except Exception as error:
        raise ValueError(f"tokenizer config: {' '.join(str(error).split())[:400]}") from None
    full = parsed.tokenizer.as_dict() if isinstance(parsed.tokenizer, Namespace) else parsed.tokenizer
    check_class_paths(full, modules)  # by now bare names are resolved, among all classes that are imported

    def make() -> Tokenizer:
        tokenizer: Tokenizer = parser.instantiate_classes(parsed).tokenizer
        tokenizer.config = copy.deepcopy(full)
        return tokenizer

    return make


def check_class_paths(node: Any, modules: tuple[str, ...]) -> None:
    """ValueError when any `class_path` in a config is anything but a class defined in the trusted packages.

    Names are looked up only inside those packages, and what they import from elsewhere does not count:
    `mmtok.hub.os.system` is refused. So are configs that nest or repeat without bound, and text that stands for a class
    or function of another package: jsonargparse would import it to see what it is.
    """
    stack, seen = [(node, 0)], 0
    while stack:
        node, depth = stack.pop()
        seen += 1
        if seen > MAX_NODES or depth > MAX_DEPTH:
            raise ValueError(f"a config of over {MAX_NODES} values or {MAX_DEPTH} levels is refused")
        if isinstance(node, dict):
            if node.get("class_path") is not None:
                _check_class(node["class_path"], modules)
            stack += [(value, depth + 1) for value in node.values()]
        elif isinstance(node, list | tuple):
            stack += [(value, depth + 1) for value in node]
        elif isinstance(node, str) and (inner := _read(node)) != node:
            stack.append((inner, depth + 1))
        elif isinstance(node, str) and _DOTTED.fullmatch(node):
            package = node.partition(".")[0]
            if package in modules or _importable(package):
                _check_class(node, modules)


def _check_class(path: Any, modules: tuple[str, ...]) -> None:
    refusal = f"class_path {path!r}: a saved config may only name classes of {', '.join(modules)}"
    if not isinstance(path, str) or path.split(".")[0] not in modules or "." not in path:
        raise ValueError(refusal)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{refusal}, and there is no {error.name}") from None
        raise  # a package that the class needs
    if not isinstance(found, type) or found.__module__.split(".")[0] not in modules:
        raise ValueError(refusal)


def _read(text: str) -> Any:
    """What jsonargparse would take a text for: it reads YAML inside texts."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _importable(package: str) -> bool:
    """Whether `import package` would find something, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # of __main__ and the like
        return True
