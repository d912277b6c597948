"""What a run was made of: `<run>/manifest.json`, one entry a start, so that a number can be traced to code and data."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

import mmtok

PACKAGES = ("torch", "lightning", "numpy", "torchvision", "torchaudio", "safetensors", "jsonargparse", "pillow")


class Manifest(pl.Callback):
    """Appends an entry when training starts: time, step, git revision, hash of the configuration and of the data index,
    versions, processes and device. No environment variable and no command line: those may hold secrets."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        path = folder / "manifest.json"
        starts = json.loads(path.read_text())["starts"] if path.is_file() else []
        starts.append({
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "step": trainer.global_step,
            "git": revision(), "config_sha256": _config_hash(folder / "config.yaml"),
            "data_sha256": data_hash(getattr(trainer, "datamodule", None)), "versions": versions(),
            "processes": trainer.world_size, "device": _device(trainer.strategy.root_device),
        })  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".manifest.{os.getpid()}")
        temporary.write_text(json.dumps({"starts": starts}, indent=1))
        os.replace(temporary, path)


def versions() -> dict[str, str]:
    """Installed versions of what decides over numbers."""
    found = {"mmtok": mmtok.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """Commit of the checkout that runs, with "+" when files were changed; None outside a checkout."""
    root = Path(mmtok.__file__).parents[1]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD") if (root / ".git").exists() else None
    return head and head + ("+" if git("status", "--porcelain", "-uno") else "")


def data_hash(datamodule: Any) -> str | None:
    """One hash over the names and hashes of all training shards, or None for data that has no index."""
    loader = getattr(datamodule, "_loader", None)
    if loader is None:
        return None
    digest = hashlib.sha256()
    for shard in loader.dataset.items.reader.index.shards:
        digest.update(f"{Path(shard.url).name} {shard.bytes} {shard.sha256}\n".encode())
    return digest.hexdigest()


def _config_hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()} {sys.platform}"
