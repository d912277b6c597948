"""`mmtok list`: what loads by name, and what trains from a YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtok.hub import catalogue


def recipes() -> dict[str, str]:
    """Name (path below configs/, without ending) -> first comment line of every training recipe."""
    import mmtok.configs

    root = Path(mmtok.configs.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.yaml")):
        name = path.relative_to(root).with_suffix("").as_posix()
        if not name.startswith("base/"):
            found[name] = path.read_text().splitlines()[0].lstrip("# ").strip()
    return found


def config_path(name: str) -> Path:
    """The YAML of a recipe named as `mmtok list` prints it."""
    import mmtok.configs

    return Path(mmtok.configs.__file__).parent / f"{name}.yaml"


def print_listing() -> None:
    """Prints two tables: tokenizers in the catalogue, and recipes."""
    entries: dict[str, dict[str, Any]] = catalogue()
    print("tokenizers (mmtok.load(name)):")
    for name, entry in entries.items():
        print(f"  {name:24s} {entry['modality']:6s} {entry['summary']}  [{entry['licence']}]")
    print("recipes (mmtok train -c <name>):")
    for name, summary in recipes().items():
        print(f"  {name:36s} {summary}")
