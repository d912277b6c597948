"""Two processes under Lightning's own DDP launcher: one order, exact resume, uneven evaluation."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

from mmtok.data import ShardData

SCRIPT = """
import json, sys
import torch
from lightning.pytorch import LightningModule, Trainer
from mmtok.data import ShardData

root, shards = sys.argv[1:]

class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.seen, self.evaluated = torch.nn.Parameter(torch.zeros(())), [], []
    def training_step(self, batch, index):
        self.seen.append([list(batch.keys), batch.x.double().sum().item()])
        return (self.weight - 1) ** 2
    def validation_step(self, batch, index):
        self.evaluated += batch.keys
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

def fit(steps, checkpoint):
    model, data = Recorder(), ShardData(shards, val=shards, batch_size=3, image_size=16, num_workers=1, window=2)
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", devices=2, strategy="ddp", logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer, model

trainer, first = fit(5, None)
trainer.save_checkpoint(f"{root}/c.ckpt")
trainer, second = fit(9, f"{root}/c.ckpt")
with open(f"{root}/{trainer.global_rank}.json", "w") as file:
    json.dump([first.seen + second.seen, second.evaluated], file)
"""


def test_two_ranks_under_lightning(shards: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(shards)], env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (seen0, evaluated0), (seen1, evaluated1) = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    one = ShardData(str(shards), batch_size=6, image_size=16, num_workers=0, window=2).train_loader(0, 1)
    reference = list(itertools.islice(itertools.chain.from_iterable(iter(one) for _ in range(9)), 9))
    assert len(seen0) == len(seen1) == 9
    for batch, (keys0, sum0), (keys1, sum1) in zip(reference, seen0, seen1, strict=True):
        assert tuple(keys0 + keys1) == batch.keys
        assert abs(sum0 + sum1 - batch.x.double().sum().item()) < 1e-6
    assert sorted(evaluated0 + evaluated1) == sorted([f"i{n:02d}" for n in range(22)] * (len(evaluated0) // 11))
