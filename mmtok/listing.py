"""`mmtok list`: what loads by name, and what trains from a YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtok.catalogue import Entry, catalogue, home, published


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
    """Prints two tables: tokenizers that ship, and recipes."""
    entries: dict[str, dict[str, Any]] = catalogue()
    print("tokenizers (mmtok.load(name); published ones: mmtok list --remote):")
    for name, entry in entries.items():
        if "folder" in entry:
            print(f"  {name:24s} {entry['modality']:6s} {entry['summary']}  [{entry['licence']}]")
    print("recipes (mmtok train -c <name>):")
    for name, summary in recipes().items():
        print(f"  {name:36s} {summary}")


def print_remote() -> None:
    """Prints the published checkpoints as a table."""
    entries = list(published(catalogue()).values())
    rows: list[tuple[str, ...]] = [("name", "kind", "weights", "M", "published numbers", "from")]
    rows += [(*_row(entry), _origin(entry)) for entry in entries]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)), row[-1]]).rstrip())
    print(
        f"M: million parameters. Numbers: each under its authors' protocol (docs/models.md)."
        f" NC: not for commercial use, asks for consent. +: already in {home()}"
    )


def _row(entry: Entry) -> tuple[str, ...]:
    here = "+" if (home() / "tokenizers" / entry.name / "config.yaml").is_file() else ""
    numbers = " ".join(f"{key} {value:g}" for key, value in entry.numbers.items()) or "-"
    parameters = "-" if entry.parameters is None else f"{entry.parameters:g}"
    licence = entry.licence.split(" (")[0] + (" NC" if entry.non_commercial else "")
    return entry.name + here, entry.modality, licence, parameters, numbers


def _origin(entry: Entry) -> str:
    if entry.repositories:
        return ", ".join(f"hf:{repository}" for repository in sorted(entry.repositories))
    return entry.files[entry.weights].split("://")[1].split("/")[0]
