"""What a user waits for before anything happens: `mmtok --help`, and `import mmtok` beside `import torch`.

    python benchmarks/startup.py --json benchmarks/results/startup.json

Every timing is a fresh process, its own start included; the commands take turns, so that a busy moment of the machine
meets all of them. `import_over_torch` is the median of the ratios of one turn and should be at most 1.15,
`help_seconds` at most 0.5. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from output import write

COMMANDS = {
    "python": "pass",
    "help": "import sys; from mmtok.cli import main; sys.argv[1:] = ['--help']; main()",
    "torch": "import torch",
    "mmtok": "import mmtok; mmtok.load; mmtok.save_tokens; mmtok.Tokens",
}


def seconds(code: str) -> float:
    """Wall time of a process that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(turns: int) -> dict[str, float]:
    """Medians over `turns`, after one turn that only warms the disk cache."""
    times = [{name: seconds(code) for name, code in COMMANDS.items()} for _ in range(turns + 1)][1:]
    medians = {f"{name}_seconds": statistics.median(turn[name] for turn in times) for name in COMMANDS}
    return medians | {"import_over_torch": statistics.median(turn["mmtok"] / turn["torch"] for turn in times)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Start-up times of mmtok.")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    result = {
        **{name: round(value, 4) for name, value in measure(options.turns).items()}, "turns": options.turns,
        "python": platform.python_version(), "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    write(result, options.json)


if __name__ == "__main__":
    main()
