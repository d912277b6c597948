"""Which file becomes which, before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

TOKENS = (".mmt",)


def plan_files(
    inputs: list[Path], out: Path, wanted: tuple[str, ...], written: tuple[str, ...], overwrite: bool
) -> list[tuple[Path, Path]]:
    """(source, target) per file.

    wanted   endings to look for in folders; a file named by itself is taken whatever its ending
    written  endings an output file may have; the first is used inside a folder
    ValueError when nothing matches, two files share a target, or a target exists.
    """
    for path in inputs:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
    if len(inputs) == 1 and inputs[0].is_file() and out.suffix and not out.is_dir():
        if out.suffix.lower() not in written:
            raise ValueError(f"--out {out}: name a file ending in {', '.join(written)}, or a folder that exists")
        found = {out: inputs[0]}
    else:
        found = _below(inputs, out, wanted, written[0])
    for target in found:
        if target.is_dir():
            raise ValueError(f"{target} is a folder: give another --out")
        if target.exists() and not overwrite:
            raise ValueError(f"{target} exists: give another --out, or --overwrite")
    return [(source, target) for target, source in found.items()]


def _below(inputs: list[Path], out: Path, wanted: tuple[str, ...], ending: str) -> dict[Path, Path]:
    """target -> source, with all targets below the folder `out`."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder, or one ending in {ending} for a single input")
    found: dict[Path, Path] = {}
    for path in inputs:
        root = path if path.is_dir() else path.parent
        for source in _walk(path, wanted):
            target = (out / source.relative_to(root)).with_suffix(ending)
            if found.setdefault(target, source) != source:
                raise ValueError(f"{source} and {found[target]} would both become {target}: rename one")
    if not found:
        raise ValueError(f"{', '.join(map(str, inputs))}: no file ends in {', '.join(wanted)}")
    return found


def _walk(path: Path, wanted: tuple[str, ...]) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in wanted)


def skip(command: str, source: Path, error: Exception) -> int:
    """Names a file that was left out; returns 1, to be added up."""
    text = f"{source}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
    print(f"mmtok {command}: skipped {' '.join(text.split())}", file=sys.stderr)
    return 1
