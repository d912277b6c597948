"""Writes requirements.lock: every distribution of `mmtok[train]`, its version and the hash of its file, for
`pip install --require-hashes -r requirements.lock` on Linux x86-64 with the Python that runs this."""

import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lines(report: dict) -> list[str]:
    """name==version --hash=..., sorted; our own entry left out. No address of any kind."""
    found = []
    for row in report["install"]:
        name, version = row["metadata"]["name"].lower().replace("_", "-"), row["metadata"]["version"]
        if name == "mmtok":
            continue
        digest = row["download_info"]["archive_info"]["hashes"]["sha256"]
        found.append(f"{name}=={version} --hash=sha256:{digest}")
    return sorted(found)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        text = Path(sys.argv[1]).read_text()
    else:
        text = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-",
             f"{ROOT}[train]"], check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    python = platform.python_version()
    head = f"# mmtok[train], Linux x86-64, Python {python}: pip install --require-hashes -r requirements.lock\n"
    (ROOT / "requirements.lock").write_text(head + "\n".join(lines(json.loads(text))) + "\n")
