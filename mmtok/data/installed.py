"""Media files that installed packages carry, found without importing anything.

Debian files are looked for under / or, with MMTOK_SAMPLES_ROOT (a list like PATH), under unpacked packages.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Group:
    """Files of one package. Every name is listed: a file belongs to train or to held-out for ever.

    package  what to install for them
    root     where a name lies: in a module, or (`module` False) under a root of the machine
    """

    package: str
    root: str
    licence: str
    train: str = ""
    heldout: str = ""
    module: bool = True


def find_file(group: Group, name: str) -> Path | None:
    """The file of that name; None when its package is not installed."""
    relative = group.root.format(name)
    if not group.module:
        roots = os.environ.get("MMTOK_SAMPLES_ROOT", f"/{os.pathsep}{sys.prefix}").split(os.pathsep)
        return next((path for root in roots if (path := Path(root) / relative).is_file()), None)
    module, _, inside = relative.partition("/")
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / inside).is_file():
            return path
    return None
