"""`mmtok list`: what loads by name, and what trains from a YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtok.catalogue import Entry, address, catalogue, home, published, unknown


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


def print_entry(name: str) -> None:
    """Prints all that the catalogue knows of one tokenizer; ValueError for an unknown name."""
    entries = catalogue()
    if name not in entries:
        raise unknown(name)
    raw = entries[name]
    lines = [("kind", raw["modality"]), ("weights", raw["licence"])]
    if "folder" not in raw:
        lines = _details(published({name: raw})[name])
    print(f"{name}: {raw['summary']}")
    for key, text in lines:
        print(f"  {key:<11}{text}")


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


def _details(entry: Entry) -> list[tuple[str, str]]:
    """(heading, text) of a published checkpoint."""
    nc = ", not for commercial use: asks for consent" if entry.non_commercial else ""
    folder = home() / "tokenizers" / entry.name
    lines = [("kind", entry.modality), ("weights", entry.licence + nc), ("code", entry.code_licence)]
    lines += [("file" if not i else "", f"{name}  {address(entry.files[name])}") for i, name in enumerate(entry.files)]
    lines += [("sha256", f"{name}  {digits}...") for name, digits in entry.sha256.items()]
    lines += [("importer", entry.importer), ("recipe", entry.recipe or "none")]
    lines.append(("parameters", f"{entry.parameters:g} M"))
    for key, value in entry.numbers.items():
        lines.append(("numbers", f"{key} {value:g}  {entry.protocol} ({entry.numbers_source})"))
    lines += [("paper", f"https://arxiv.org/abs/{entry.paper}")] if entry.paper else []
    lines += [("note", entry.note)] if entry.note else []
    return [*lines, ("here", str(folder) if (folder / "config.yaml").is_file() else "not yet")]


def _origin(entry: Entry) -> str:
    if entry.repositories:
        return ", ".join(f"hf:{repository}" for repository in sorted(entry.repositories))
    return entry.files[entry.weights].split("://")[1].split("/")[0]
