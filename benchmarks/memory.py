"""What a trained parameter costs in memory, measured: weights, gradients, moments and average, without and with DDP.

    python benchmarks/memory.py [--recipe image/open_magvit2] [--json benchmarks/results/memory.json]

Each strategy trains the recipe's full model for two updates on small pictures in a process of its own (CPU, float32).
Before the second update of the generator everything is there: tensors are counted one by one, and the resident memory
of the process tells what DDP keeps beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from output import write
from PIL import Image
from torch import Tensor

from mmtok.data.write import make_shards
from mmtok.training.cli import main as train
from mmtok.training.meters import memory

STRATEGIES = {"one process": "auto", "DDP": "ddp_find_unused_parameters_true"}


class Census(pl.Callback):
    """Writes bytes by kind to `path` before the generator's second update, and ends the process."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        if trainer.global_step < 1 or optimizer is not trainer.optimizers[0]:
            return
        parameters = [*pl_module._gen_parameters, *pl_module._disc_parameters]
        states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        generator = sum(p.numel() for p in pl_module._gen_parameters)
        self.path.write_text(json.dumps({
            "trained": sum(p.numel() for p in parameters), "generator": generator,
            "weights": _bytes(pl_module._gen_parameters),
            "gradients": _bytes([p.grad for p in pl_module._gen_parameters if p.grad is not None]),
            "moments": _bytes(states), "average": _bytes(list(pl_module.ema.state_dict()["averages"].values())),
            "resident": 1e9 * memory()["perf/memory_gb"],
        }))  # fmt: skip
        os._exit(0)  # a checkpoint of this size is not needed


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def measure(recipe: str, strategy: str, root: Path) -> dict[str, int]:
    """One recipe under one strategy, in this process; ends it."""
    (root / "in").mkdir(parents=True)
    for n in range(4):
        noise = np.random.default_rng(n).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(root / "in" / f"{n}.png")
    make_shards(str(root / "in"), root / "shards", progress=False)
    node = {
        "trainer": {
            "strategy": strategy, "devices": 1, "accelerator": "cpu", "precision": "32-true", "max_steps": 9,
            "limit_val_batches": 0, "enable_progress_bar": False, "enable_model_summary": False,
            "callbacks": [{"class_path": "memory.Census", "init_args": {"path": str(root / "census.json")}}],
        },
        "data": {"class_path": "mmtok.data.ShardData", "init_args": {
            "train": str(root / "shards"), "batch_size": 1, "image_size": 64, "num_workers": 0, "pin_memory": False}},
        "wandb": False, "runs": str(root), "name": "run",
    }  # fmt: skip
    (root / "small.yaml").write_text(yaml.safe_dump(node))
    train(["fit", "-c", recipe, "-c", str(root / "small.yaml")])
    raise AssertionError("training ended before it was measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="image/open_magvit2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--strategy", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.strategy:
        measure(options.recipe, options.strategy, options.root)
    found = {}
    for name, strategy in STRATEGIES.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--recipe", options.recipe, "--strategy", strategy, "--root", folder]
            subprocess.run(command, check=True)
            found[name] = json.loads((Path(folder) / "census.json").read_text())
    one, ddp = found["one process"], found["DDP"]
    kinds = ("weights", "gradients", "moments", "average")
    result = {
        "benchmark": "memory", "recipe": options.recipe, "torch": torch.__version__, "generator": one["generator"],
        "trained": one["trained"],
        "bytes_a_parameter": {kind: round(ddp[kind] / ddp["generator"], 3) for kind in kinds}
        | {"of_ddp": round((ddp["resident"] - one["resident"]) / ddp["trained"], 2)},
        "resident_gb": {name: round(row["resident"] / 1e9, 3) for name, row in found.items()},
    }  # fmt: skip
    write(result, options.json)


if __name__ == "__main__":
    main()
