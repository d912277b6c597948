"""`mmtok doctor`: what this installation has, what it lacks, and whether shards and logging are in order.

Exit codes: 0 all well; 1 something that matters is wrong (each is marked !!); 2 a mistake in the command. Nothing
secret is printed: of credentials only whether they are there.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

from mmtok import __version__
from mmtok.console import Parser

Level = Literal["ok", "note", "wrong"]
Finding = tuple[Level, str, str]  # how it stands, of what, in words

PACKAGES = (
    "torch", "numpy", "safetensors", "jsonargparse", "constriction", "lightning", "torchvision", "torchaudio", "pillow",
    "webdataset", "wandb", "av", "soundfile", "ray",
)  # fmt: skip
CORE = PACKAGES[:5]
BANNED = {(name, version) for name in ("lightning", "pytorch-lightning") for version in ("2.6.2", "2.6.3")}
FREE_BYTES = 5 << 30


def command_line(args: Sequence[str], prog: str = "mmtok doctor") -> int:
    parser = Parser(prog, description="Environment, kernels, weights, shards and logging, in one look.")
    parser.add_argument("--data", nargs="*", default=[], help="shards to look at, as in data.train")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs: free space, W&B, checkpoints")
    options = parser.parse_args(args)
    worst = 0
    for level, what, words in examine(options.data, options.runs):
        print(f"{'!!' if level == 'wrong' else '--' if level == 'note' else 'ok'}  {what:<12} {words}")
        worst = max(worst, level == "wrong")
    return int(worst)


def examine(data: Sequence[str], runs: Path) -> Iterator[Finding]:
    """All findings, in the order they are printed."""
    yield from packages()
    yield from device()
    yield from kernels()
    yield from weights()
    for entry in data:
        yield from shards(entry)
    yield from folder(runs)
    yield from logging_state(runs)


def packages() -> Iterator[Finding]:
    found = f"mmtok {__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "ok", "environment", f"{found}, {os.cpu_count()} CPUs"
    here = {}
    for name in (*PACKAGES, "pytorch-lightning"):
        try:
            here[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    yield "ok", "packages", ", ".join(f"{name} {version}" for name, version in here.items())
    for name in CORE:
        if name not in here:
            yield "wrong", name, "missing: pip install mmtok"
    for name, version in here.items():
        if (name, version) in BANNED:
            yield "wrong", name, f"{version} was a malicious upload: remove it, rotate every credential of this machine"
    if "lightning" not in here:
        yield "note", "training", "not installed: pip install 'mmtok[train]'"


def device() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        yield "note", "GPU", "none found" + (f", although torch is built for CUDA {built}" if built else "")
        return
    for i in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(i)
        free, total = (n / 1e9 for n in torch.cuda.mem_get_info(i))
        sm = f"compute {seen.major}.{seen.minor}, {free:.0f} of {total:.0f} GB free"
        yield "ok", f"GPU {i}", f"{seen.name}, {sm}, CUDA {torch.version.cuda}"


def kernels() -> Iterator[Finding]:
    from mmtok.kernels.dispatch import status

    found = status()
    for name, path, reason in (("CPU", found.cpu, found.cpu_reason), ("CUDA", found.cuda, found.cuda_reason)):
        slow = path == "torch" and name == "CPU"
        yield "note" if slow else "ok", "kernels", f"{name}: {path}" + (f" ({reason})" if reason else "")


def weights() -> Iterator[Finding]:
    from mmtok import weights as found
    from mmtok.catalogue import catalogue, checkpoints, home

    entries = catalogue()
    own = {name: checkpoints() / raw["folder"] for name, raw in entries.items() if "folder" in raw}
    others = {name: home() / "tokenizers" / name for name in entries if name not in own}
    here = [name for name, place in (own | others).items() if (place / "model.safetensors").is_file()]
    rest = f"; {len(set(others) - set(here))} more can be fetched (mmtok list --remote)"
    yield "ok" if here else "note", "tokenizers", (", ".join(here) or "no weights here") + rest
    for name in sorted(set(own) - set(here)):
        yield "note", "tokenizers", f"{name} should ship, but {own[name]} has no weights: install mmtok again"
    needs: tuple[tuple[str, Callable[[], object]], ...] = (
        ("LPIPS (vgg)", lambda: (found.backbone("vgg"), found.lpips_heads("vgg"))),
        ("rFID", lambda: found.require(found.INCEPTION_FID)),
    )
    for metric, look in needs:
        try:
            look()
            yield "ok", "weights", f"of {metric} found"
        except ValueError as error:
            yield "note", "weights", f"of {metric}: {str(error).removeprefix('weights: ')}"


def shards(entry: str) -> Iterator[Finding]:
    """Index and file sizes; `mmtok shards check` decodes everything."""
    from mmtok.data.reader import load_index
    from mmtok.data.remote import is_remote
    from mmtok.data.urls import expand_urls

    try:
        urls = expand_urls(entry, "--data")
        index = load_index(urls, "--data")
    except (ValueError, OSError) as error:
        yield "wrong", "shards", str(error)
        return
    local = [shard for shard in index.shards if not is_remote(shard.url)]
    changed = [s.url for s in local if not Path(s.url).is_file() or Path(s.url).stat().st_size != s.bytes]
    size = sum(shard.bytes for shard in index.shards) / 1e6
    yield "ok", "shards", f"{entry}: {len(index.shards)} shards, {len(index)} samples, {size:,.1f} MB"
    for url in changed[:5]:
        yield "wrong", "shards", f"{url} is not what its index says: run `mmtok shards check` on its folder"


def folder(runs: Path) -> Iterator[Finding]:
    place = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK)
    level: Level = "wrong" if not writable else "note" if free < FREE_BYTES else "ok"
    yield level, "runs", f"{runs}: {free / 1e9:.1f} GB free" + ("" if writable else ", not writable")
    from mmtok.data.reader import cache_folder

    limit = os.environ.get("MMTOK_CACHE_GB")
    bound = f"limit {limit} GB" if limit else "no limit (MMTOK_CACHE_GB)"
    yield "ok", "cache", f"{cache_folder()} (MMTOK_HOME), {bound}"
    if not runs.is_dir():
        return
    try:
        from mmtok.training.checkpoint_io import latest
    except ModuleNotFoundError:
        return
    for run in sorted(runs.iterdir()):
        if not (run / "checkpoints").is_dir():
            continue
        try:
            newest = latest(run / "checkpoints")
            yield "ok", "run", f"{run.name}: {newest.name if newest else 'no checkpoint yet'}"
        except ValueError as error:
            yield "wrong", "run", str(error)


def logging_state(runs: Path) -> Iterator[Finding]:
    mode = os.environ.get("WANDB_MODE")
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    key = "set" if os.environ.get("WANDB_API_KEY") else "in .netrc" if netrc.is_file() else "not set"
    state = mode or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    waiting = len(list(runs.glob("*/wandb/offline-run-*"))) if runs.is_dir() else 0
    words = f"{state}, key {key}" + (f", {waiting} offline runs (wandb sync uploads them)" if waiting else "")
    yield "ok", "W&B", words
