"""A small run with everything in it: shards, tail drop, VQ, a discriminator, EMA."""

import io
import json
import os
import random
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import yaml
from lightning.pytorch import Callback
from PIL import Image
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from mmtok.data.check import check_shards
from mmtok.training.cli import main


def write_shards(folder: Path, count: int = 26) -> Path:
    """Two tars of noisy colour gradients, PNG, 40 x 36 pixels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for shard in range(2):
        with tarfile.open(folder / f"s-{shard:06d}.tar", "w") as tar:
            for i in range(shard, count, 2):
                ramp = np.linspace(0, 255, 40)[None, :, None] * rng.random(3) + rng.normal(0, 8, (36, 40, 3))
                stream = io.BytesIO()
                Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(stream, "PNG")
                member = tarfile.TarInfo(f"im{i:03d}.png")
                member.size = stream.tell()
                stream.seek(0)
                tar.addfile(member, stream)
    check_shards(folder, progress=False)
    return folder


def config(shards: Path, **dotted) -> dict:
    """The run as a configuration; dotted keys use `__` for the dot."""
    net = {"dim": 4, "num_latents": 16, "image_size": 32, "patch": 8, "width": 32, "layers": 1, "heads": 2}
    titok = "mmtok.models.image.titok"
    node = {
        "wandb": False,
        "trainer": {
            "max_steps": 20, "accelerator": "cpu", "devices": 1, "val_check_interval": 5, "limit_val_batches": 1,
            "check_val_every_n_epoch": None, "log_every_n_steps": 1, "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "checkpoint": {"every": 10},
        "media": {"count": 0},
        "model": {
            "tokenizer": {"class_path": f"{titok}.TiTok", "init_args": {
                "encoder": {"class_path": f"{titok}.TiTokEncoder", "init_args": dict(net)},
                "quantizer": {"class_path": "mmtok.quantizers.vq.VQ", "init_args": {
                    "dim": "${model.tokenizer.init_args.encoder.init_args.dim}", "codebook_size": 32, "l2_norm": True}},
                "decoder": {"class_path": f"{titok}.TiTokDecoder", "init_args": dict(net)},
                "tail": {"class_path": "mmtok.taildrop.UniformTail"},
            }},
            "objective": {"class_path": "mmtok.training.Objective", "init_args": {
                "terms": {
                    "l1": {"class_path": "mmtok.losses.L1"},
                    "adv": {"class_path": "mmtok.losses.Adversarial", "init_args": {
                        "network": {
                            "class_path": "mmtok.discriminators.PatchGAN", "init_args": {"width": 8, "layers": 1}},
                        "start": 3, "lead": 2, "ramp": 4, "lecam": True}},
                },
                "weights": {
                    "l1": 1.0, "adv": 0.1, "adv_disc": 1.0, "adv_lecam": 0.01, "commit": 0.25, "codebook": 1.0},
            }},
            "generator_optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
            "discriminator_optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}},
            "generator_schedule": {"class_path": "mmtok.training.Cosine", "init_args": {"total": 20, "warmup": 4}},
            "ema": {"class_path": "mmtok.training.EMA", "init_args": {"decay": 0.9}},
            "validation": {"class_path": "mmtok.training.Validation", "init_args": {"lengths": [2, 8]}},
        },
        "data": {"class_path": "mmtok.data.module.ShardData", "init_args": {
            "train": str(shards / "s-*.tar"), "val": str(shards / "s-000000.tar"), "batch_size": 4, "image_size": 32,
            "num_workers": 0, "start_method": "fork"}},
    }  # fmt: skip
    for key, value in dotted.items():
        *parents, last = key.split("__")
        at = node
        for part in parents:
            at = at.setdefault(part, {})
        at[last] = value
    return node


def write_config(path: Path, node: dict) -> str:
    path.write_text(yaml.safe_dump(node, sort_keys=False))
    return str(path)


class Recorder(Callback):
    """Notes keys and time of every batch, and the random state at the end; kills the process after `kill` steps."""

    def __init__(self, path: str, kill: int | None = None, signal: int = 9) -> None:
        self.path, self.kill, self.signal = Path(path), kill, signal

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with open(self.path, "a") as stream:
            stream.write(json.dumps([trainer.global_step, list(batch.keys), time.time()]) + "\n")
        if trainer.global_step == self.kill:
            os.kill(os.getpid(), self.signal)

    def on_train_end(self, trainer, pl_module):
        state = {"torch": torch.get_rng_state(), "numpy": np.random.random(4).tolist(), "python": random.random()}
        torch.save(state, self.path.with_suffix(".rng"))


def ddp_rank(rank: int, port: int, folder: str, shards: str, adversarial: bool) -> None:
    """One of two processes (gloo) that train the toy, two batches an update, under the strategy that the command ships.
    """
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    node = config(Path(shards), name="ddp", runs=folder, trainer__devices=2, trainer__max_steps=8)
    node["model"]["accumulate"] = 2
    if not adversarial:
        objective = node["model"]["objective"]["init_args"]
        del objective["terms"]["adv"]
        objective["weights"] = {name: w for name, w in objective["weights"].items() if not name.startswith("adv")}
    node["trainer"]["callbacks"] = [{"class_path": "training_toys.RankState", "init_args": {"folder": folder}}]
    main(["fit", "-c", write_config(Path(folder) / f"ddp{rank}.yaml", node)])


class RankState(Callback):
    """Saves every rank's whole state, the strategy's name, and how many gradients travelled, at the end."""

    def __init__(self, folder: str) -> None:
        self.folder, self.exchanged = Path(folder), 0

    def on_train_start(self, trainer, pl_module):
        def counted(flat, *args, **kwargs):
            # losses, flags and statistics are small
            self.exchanged += flat.numel() if flat.numel() > 1000 else 0
            return all_reduce(flat, *args, **kwargs)

        all_reduce, dist.all_reduce = dist.all_reduce, counted
        # DDP's own exchanges go through the same function then
        trainer.strategy.model.register_comm_hook(dist.group.WORLD, allreduce_hook)

    def on_train_end(self, trainer, pl_module):
        strategy = trainer.strategy
        state = {
            "state": pl_module.state_dict(), "ema": pl_module.ema.state_dict(), "step": trainer.global_step,
            "unused": bool(strategy._ddp_kwargs.get("find_unused_parameters")), "world": trainer.world_size,
            "exchanged": self.exchanged, "generator": sum(p.numel() for p in pl_module._gen_parameters),
            "discriminator": sum(p.numel() for p in pl_module._disc_parameters),
        }  # fmt: skip
        torch.save(state, self.folder / f"rank{trainer.global_rank}.pt")


def keys(path: Path) -> dict[int, list[str]]:
    """Step -> keys; of a step that ran twice, the last time counts."""
    return {step: names for step, names, _ in map(json.loads, path.read_text().splitlines())}


def same(a, b, where: str = "") -> list[str]:
    """Paths at which two nested checkpoints differ, bit for bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [f"{where}: keys"]
        return [path for key in a for path in same(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{where}: length"]
        return [path for i, pair in enumerate(zip(a, b, strict=True)) for path in same(*pair, f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a} != {b}"]
