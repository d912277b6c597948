"""`checkpoints/catalogue.yaml`: the tokenizers that load by name, and where the published ones come from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

MODALITIES = ("image", "video", "audio")
PLACES = ("hf:", "https://", "page:https://")


@dataclass(frozen=True)
class Entry:
    """A published checkpoint.

    name            what `mmtok.load` takes
    modality        "image", "video" or "audio"
    summary         one line: what it codes, how many codes
    licence         of the weights; `non_commercial` ones are downloaded only after consent
    code_licence    of the authors' code
    files           local name -> place; the weights come first. A place is hf:owner/name/path, https://..., or
                    page:https://... where a person must click
    importer, recipe  module of mmtok.importers, and the recipe in configs/ (or None) that trains a model of its shapes
    published       settings that stand for a config file where none is published beside the weights
    sha256          local name -> hex digits that the digest begins with, where published
    parameters      in millions, of what is loaded (without a VAE or CLIP that is fetched apart)
    numbers         metric -> value as the authors report it, under `protocol`, read in `numbers_source`
    paper           arXiv number
    note            what the user should know
    """

    name: str
    modality: str
    summary: str
    licence: str
    code_licence: str
    files: dict[str, str]
    importer: str
    recipe: str | None = None
    published: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    parameters: float | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    protocol: str = ""
    numbers_source: str = ""
    paper: str = ""
    note: str = ""
    non_commercial: bool = False

    @property
    def weights(self) -> str:
        """Local name of the weights file."""
        return next(iter(self.files))

    @property
    def repositories(self) -> set[str]:
        """Hub repositories (owner/name) that the files lie in."""
        return {split_hub(place)[0] for place in self.files.values() if place.startswith("hf:")}


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML was built with libyaml


def catalogue() -> dict[str, dict[str, Any]]:
    """Name -> raw entry. Shipped tokenizers have a `folder`, published ones `files`."""
    return yaml.load((checkpoints() / "catalogue.yaml").read_text(), LOADER) or {}


def checkpoints() -> Path:
    """The folder of the catalogue and of the tokenizers that ship."""
    import mmtok.checkpoints

    return Path(mmtok.checkpoints.__file__).parent


def published(entries: dict[str, dict[str, Any]] | None = None) -> dict[str, Entry]:
    """Name -> published checkpoint."""
    found = catalogue() if entries is None else entries
    return {name: entry_of(name, raw) for name, raw in found.items() if "folder" not in raw}


def entry_of(name: str, raw: dict[str, Any]) -> Entry:
    """A raw entry, checked; ValueError names the entry and the key."""
    known = {f.name for f in fields(Entry)} - {"name"}
    unknown = sorted(set(raw) - known)
    missing = sorted({"modality", "summary", "licence", "code_licence", "files", "importer"} - set(raw))
    if unknown or missing:
        raise ValueError(f"catalogue.yaml: {name}: keys missing {missing}, unknown {unknown}")
    entry = Entry(name, **raw)
    if entry.modality not in MODALITIES:
        raise ValueError(f"catalogue.yaml: {name}.modality: expected one of {', '.join(MODALITIES)}")
    if not entry.files or not set(entry.sha256) <= set(entry.files):
        raise ValueError(f"catalogue.yaml: {name}: files is empty, or sha256 names another file")
    for place in entry.files.values():
        if not place.startswith(PLACES):
            raise ValueError(f"catalogue.yaml: {name}.files: {place} begins with none of {', '.join(PLACES)}")
    if entry.numbers and not (entry.protocol and entry.numbers_source):
        raise ValueError(f"catalogue.yaml: {name}.numbers need protocol and numbers_source")
    return entry


def split_hub(place: str) -> tuple[str, str]:
    """hf:owner/name/path/in/it -> ("owner/name", "path/in/it")."""
    parts = place.removeprefix("hf:").split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"{place}: expected hf:owner/name/file")
    return f"{parts[0]}/{parts[1]}", parts[2]


def address(place: str) -> str:
    """What a browser opens for a place of the catalogue."""
    if place.startswith("hf:"):
        repository, path = split_hub(place)
        return f"https://huggingface.co/{repository}/resolve/main/{path}"
    return place.removeprefix("page:")


def unknown(name: str) -> ValueError:
    """The error for a name that is not in the catalogue, with those it may be meant for."""
    near = get_close_matches(name, catalogue(), 5, 0.4)
    hint = f"Did you mean {', '.join(near)}? " if near else ""
    return ValueError(
        f"no tokenizer named {name!r}: neither a folder nor in the catalogue. {hint}mmtok list and mmtok list --remote"
        " print all names"
    )


def home() -> Path:
    """Where downloads and imported tokenizers are kept: MMTOK_HOME, or mmtok in the user's cache folder."""
    if chosen := os.environ.get("MMTOK_HOME"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mmtok"
