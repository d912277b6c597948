"""Reading a configuration file: `base:` (other files underneath) and `tiny:` (a smaller variant on top).

    base: ../base/gan.yaml              # one path or a list, relative to this file
    tiny: {data.init_args.batch_size: 2, trainer.max_steps: 2}

`tiny` maps dotted keys to values. It is laid on top of the file before anything is interpolated or instantiated, so
command-line overrides still win.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Config = dict[str, Any]


def read_config_file(path: str | Path, tiny: bool = False) -> Config:
    """The file with its bases merged in and without the keys `base` and `tiny`; the latter applied when asked.

    ValueError names the file for a missing file, bad YAML, or `tiny` asked of a file that declares none.
    """
    config, small = _read(Path(path), ())
    if tiny:
        if not small:
            raise ValueError(f"{path}: --apply_tiny needs a `tiny:` map of dotted keys, and this file declares none")
        for key, value in small.items():
            _set(config, key, value, path)
    return config


def merge(under: Config, over: Config) -> Config:
    """`over` laid on `under`, mapping by mapping; a node that names another class replaces the whole node."""
    if "class_path" in over and over["class_path"] != under.get("class_path", over["class_path"]):
        return over
    out = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def _read(path: Path, above: tuple[Path, ...]) -> tuple[Config, Config]:
    if path.resolve() in above:
        raise ValueError(f"{path}: `base` leads back to this file")
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a mapping of keys")
    bases, tiny = config.pop("base", []), config.pop("tiny", {})
    if not isinstance(tiny, dict):
        raise ValueError(f"{path}: `tiny` must map dotted keys to values")
    under: Config = {}
    small: Config = {}
    for base in [bases] if isinstance(bases, str) else bases:
        node, its_tiny = _read(path.parent / base, (*above, path.resolve()))
        under, small = merge(under, node), small | its_tiny
    return merge(under, config), small | tiny


def _set(config: Config, dotted: str, value: Any, path: str | Path) -> None:
    *parents, last = dotted.split(".")
    node = config
    for part in parents:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise ValueError(f"{path}: tiny.{dotted}: {part} is not a mapping")
    node[last] = value
