"""A training step of the Lightning task against a bare PyTorch loop over the same model, losses and batches.

    python benchmarks/train_step.py [--adversarial] [--steps 40] [--rounds 3] [--json train_step.json]

Rounds alternate between the two; a side's figure is the median of its step times. Bar: ratio at most 1.05.
"""

from __future__ import annotations

import argparse
import copy
import logging
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from output import write
from torch.utils.data import DataLoader

from mmtok import hub
from mmtok.discriminators import PatchGAN
from mmtok.losses import L1, Adversarial, Perceptual
from mmtok.tokenizer import Tokenizer
from mmtok.training import EMA, Objective, TokenizerTask
from mmtok.types import Batch

NET = {"dim": 8, "num_latents": 32, "image_size": 64, "patch": 8, "width": 192, "layers": 4, "heads": 3}


def tokenizer() -> Tokenizer:
    titok = "mmtok.models.image.titok"
    return hub.build({"class_path": f"{titok}.TiTok", "init_args": {
        "encoder": {"class_path": f"{titok}.TiTokEncoder", "init_args": NET},
        "quantizer": {"class_path": "mmtok.quantizers.vq.VQ", "init_args": {"dim": 8, "codebook_size": 1024}},
        "decoder": {"class_path": f"{titok}.TiTokDecoder", "init_args": NET},
        "tail": {"class_path": "mmtok.taildrop.UniformTail"},
    }})  # fmt: skip


def objective(adversarial: bool) -> Objective:
    terms: dict[str, Any] = {"l1": L1(), "lpips": Perceptual("alex")}
    weights = {"l1": 1.0, "lpips": 0.5, "commit": 0.25, "codebook": 1.0}
    if adversarial:
        terms["adv"] = Adversarial(PatchGAN(32))
        weights |= {"adv": 0.1, "adv_disc": 1.0}
    return Objective(terms, weights)


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4)


class Clock(pl.Callback):
    """Time at the end of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def lightning_steps(model: Tokenizer, losses: Objective, batches: list[Batch], ema: bool) -> list[float]:
    task = TokenizerTask(model, losses, optimizer, optimizer, ema=EMA() if ema else None)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=len(batches), logger=False, enable_checkpointing=False, callbacks=[clock],
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, precision="32-true",
        )  # fmt: skip
        trainer.fit(task, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]


def bare_steps(model: Tokenizer, losses: Objective, batches: list[Batch]) -> list[float]:
    model.train()
    losses.train()
    ours = list(model.parameters())
    theirs = [p for module in losses.discriminators() for p in module.parameters()]
    generator, discriminator = optimizer(ours), optimizer(theirs) if theirs else None
    times = []
    for step, batch in enumerate(DataLoader(batches, batch_size=None)):  # type: ignore[arg-type]
        for parameter in theirs:
            parameter.requires_grad_(False)
        recon = model(batch)
        torch.stack(list(losses.generator(recon, batch, step).values())).sum().backward()
        for parameter in theirs:
            parameter.requires_grad_(True)
        torch.nn.utils.clip_grad_norm_(ours, 1.0)
        generator.step()
        generator.zero_grad()
        if discriminator is not None:
            torch.stack(list(losses.discriminator(recon, batch, step).values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(theirs, 1.0)
            discriminator.step()
            discriminator.zero_grad()
        times.append(time.perf_counter())
    return [b - a for a, b in zip(times, times[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adversarial", action="store_true")
    parser.add_argument("--ema", action="store_true", help="the task also averages weights (the bare loop never does)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    model, losses = tokenizer(), objective(options.adversarial)
    batches = [Batch.of(torch.rand(options.batch, 3, 64, 64) * 2 - 1) for _ in range(options.steps)]
    task: list[float] = []
    bare: list[float] = []
    for _ in range(options.rounds + 1):
        task += lightning_steps(copy.deepcopy(model), copy.deepcopy(losses), batches, options.ema)
        bare += bare_steps(copy.deepcopy(model), copy.deepcopy(losses), batches)
    warm = options.steps - 1  # the first round of both warms up
    task_ms, bare_ms = (1000 * statistics.median(times[warm:]) for times in (task, bare))
    result = {
        "benchmark": "train_step", "task_ms": round(task_ms, 3), "bare_ms": round(bare_ms, 3),
        "ratio": round(task_ms / bare_ms, 4), "bar": 1.05, "overhead_ms": round(task_ms - bare_ms, 3),
        "adversarial": options.adversarial, "ema": options.ema, "batch": options.batch, "steps": options.steps,
        "rounds": options.rounds, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "machine": platform.machine(),
    }  # fmt: skip
    write(result, options.json)


if __name__ == "__main__":
    main()
