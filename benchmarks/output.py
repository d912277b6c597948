"""Where a benchmark's result goes: as JSON to the terminal, and into a file when one is named."""

import json
from pathlib import Path


def write(result: dict, path: Path | None) -> None:
    text = json.dumps(result, indent=1)
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
