"""The lock holds hashes for everything, no banned version, and agrees with what pyproject.toml asks for."""

import re
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.version import Version

from mmtok.doctor import BANNED

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
ROWS = dict(re.findall(r"^([a-z0-9.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}$", LOCK, re.M))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_line_has_a_version_and_a_hash_and_no_address() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(ROWS) > 50
    assert "://" not in LOCK and "--index" not in LOCK and "--extra-index" not in LOCK and " @ " not in LOCK


def test_banned_versions_are_refused_everywhere() -> None:
    assert not {(normal(name), version) for name, version in ROWS.items()} & BANNED
    train = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    (lightning,) = (Requirement(line) for line in train if Requirement(line).name == "lightning")
    for name, version in BANNED:
        assert name != "lightning" or version not in lightning.specifier


def test_the_lock_satisfies_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {normal(name): Version(version) for name, version in ROWS.items()}
    for line in [*project["dependencies"], *project["optional-dependencies"]["train"]]:
        requirement = Requirement(line)
        assert normal(requirement.name) in locked, f"{line} is not locked: run `make lock`"
        assert requirement.specifier.contains(locked[normal(requirement.name)]), line
