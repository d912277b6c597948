"""Writes docs/models.md from the catalogue, the importers and the golden folders: python docs/write_models.py

tests/test_catalogue.py fails when the page is older than what it is made from.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from mmtok.catalogue import Entry, published
from mmtok.importers import families

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
HEAD = """# Published tokenizers

Written by `docs/write_models.py`; do not edit. `mmtok.load(name)` downloads, converts once and loads each of these
([usage](usage.md)); `mmtok list --remote` prints the table.

- **importer**: the module of `mmtok.importers` that reads the file, and the small golden folders of `tests/golden/`
  (random weights under the published names) on which its codes equal those of the authors' code. No published file
  could be downloaded where this was written: that names and shapes are those of the files rests on these folders and on
  the authors' configurations. How near ours came on them is [measured](golden.md).
- **recipe**: the configuration that trains a model of the same shapes (`mmtok train -c <recipe>`), where there is one.
- **parameters**: in millions, of what is loaded. Parts of a file that nothing reads do not count (BAE, Cosmos,
  OmniTokenizer, WavTokenizer), nor do codebooks that are running means, nor a VAE or CLIP that is fetched apart. Every
  file's keys and shapes at full size are written down in `tests/importers/`, where the tests hold them to the authors'
  own counts, to the importer and to the recipe.
- **numbers**: the authors' own. Two numbers compare only under one protocol; the letter names it, below the table.
- **licence**: of the weights, then of the code. NC: not for commercial use; loading asks for consent.
"""


def page() -> str:
    """The whole page."""
    parts, letters = [HEAD], {}
    entries = published()
    systems = {name: importlib.import_module(f"mmtok.importers.{name}").SYSTEMS for name in families()}
    for modality in ("image", "video", "audio"):
        rows = [entry for entry in entries.values() if entry.modality == modality]
        parts.append(f"\n## {modality.capitalize()}\n")
        parts.append("| name | what | importer (codes equal on) | recipe | parameters | numbers | licence | paper |")
        parts.append("|---|---|---|---|---|---|---|---|")
        parts += [_row(entry, systems[entry.importer], letters) for entry in rows]
    parts.append("\n## Protocols\n")
    parts += [f"- **{letter}**: {protocol} ({source})" for (protocol, source), letter in letters.items()]
    notes: dict[str, list[str]] = {}
    for entry in entries.values():
        if entry.note:
            notes.setdefault(entry.note, []).append(f"`{entry.name}`")
    return "\n".join([*parts, "\n## Notes\n", *(f"- {', '.join(names)}: {note}" for note, names in notes.items()), ""])


def _row(entry: Entry, systems: tuple[str, ...], letters: dict[tuple[str, str], str]) -> str:
    golden = [name for name in systems if list((ROOT / "tests" / "golden").glob(f"*/{name}/io.safetensors"))]
    numbers = ""
    if entry.numbers:
        letter = letters.setdefault((entry.protocol, entry.numbers_source), _letter(len(letters)))
        numbers = ", ".join(f"{key} {value:g}" for key, value in entry.numbers.items()) + f" **{letter}**"
    parameters = "" if entry.parameters is None else f"{entry.parameters:g}"
    licence = entry.licence + (" NC" if entry.non_commercial else "") + f"; {entry.code_licence}"
    recipe = "" if entry.recipe is None else f"[{entry.recipe}](../configs/{entry.recipe}.yaml)"
    cells = [
        f"`{entry.name}`", entry.summary, f"`{entry.importer}` ({', '.join(golden) or 'no golden folder yet'})",
        recipe, parameters, numbers, licence, f"[{entry.paper}](https://arxiv.org/abs/{entry.paper})",
    ]
    return f"| {' | '.join(cells)} |"


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"A{chr(ord('A') + number - 26)}"


if __name__ == "__main__":
    PAGE.write_text(page())
