"""Imports between the rooms of the package point one way, as docs/architecture.md says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# a room may import from the rows above it, and from its neighbours within {}
LAYERS = (
    "keep kernels weights coder console configs checkpoints download",
    "code_tables",
    "types taildrop nn catalogue",
    "quantizers data discriminators",
    "tokenizer",
    "models build bounds bitstream tables optimize",
    "importers folder",
    "published",
    "hub",
    "losses files listing export corpus {metrics report}",
    "evaluate_audio",
    "evaluate_video",
    "training evaluate",
    "compare demo doctor",
    "cli",
)


def layers() -> dict[str, int]:
    return {room: rank for rank, row in enumerate(LAYERS) for room in row.replace("{", "").replace("}", "").split()}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if parts[0] != "mmtok" else parts[1].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms that a file imports from, wherever the import stands."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "mmtok":
            names = [f"mmtok.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("mmtok.")}
    return rooms & set(layers())


FILES = [
    path for folder in ("mmtok", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.name.startswith("bench")  # benchmarks look at everything
]


def test_every_room_has_a_place() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} <= set(layers())


@pytest.mark.parametrize("room", sorted({room_of(path) for path in FILES} - {"__init__"}))
def test_imports_point_down(room) -> None:
    rank, together = layers(), {"metrics", "report"}
    for path in FILES:
        if room_of(path) == room:
            for other in imported(path) - {room}:
                below = rank[other] < rank[room] or {other, room} == together
                assert below, f"{path.relative_to(ROOT)} imports mmtok.{other}, which stands above or beside it"
