"""The training command: `python train.py fit -c config.yaml ...`, the same program as `mmtok train`.

    fit | validate | test      -c FILE [-c FILE ...] [--apply_tiny] [--key value ...]
    -c image/titok_l32_stage1  a recipe by its name in `mmtok list`, when there is no such file
    --name, --runs             output goes to <runs>/<name>; the name is the file's unless given
    --ckpt_path last           go on with this run, or start it when there is nothing yet (safe in a requeued job)

Exit codes: 0 done; 2 a mistake of the user (one line on stderr); 130, 138 and 143 stopped by Ctrl-C, SIGUSR1 and
SIGTERM after a checkpoint was written; 124 a process hung.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mmtok.listing import config_path, recipes
from mmtok.training.callbacks import Checkpoint, Export, Manifest, MediaGrid, ProgressBar, Watch
from mmtok.training.checkpoint_io import latest
from mmtok.training.config_file import merge, read_config_file
from mmtok.training.loggers import CSVLog, wandb_logger
from mmtok.training.task import TokenizerTask

USER_ERRORS = (ValueError, OSError, MisconfigurationException, ArgumentError)
COMMANDS = ("fit", "validate", "test")


def main(args: list[str] | None = None) -> TrainingCLI:
    """Runs the command line `args` (sys.argv when None); SystemExit with the codes above."""
    args = list(sys.argv[1:] if args is None else args)
    # an advertisement, and a deprecation inside Lightning that no user can mend
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    with tempfile.TemporaryDirectory() as folder:
        try:
            cli = TrainingCLI(_with_one_file(args, Path(folder)))
        except USER_ERRORS as error:
            _fail(error, folder)
    stopped = cli.config_init[cli.subcommand].checkpoint.signal
    if stopped is not None:
        print(f"stopped by signal {stopped}: go on with --ckpt_path last", file=sys.stderr)
        raise SystemExit(128 + stopped)
    return cli


class TrainingCLI(LightningCLI):
    """LightningCLI with our task, run folder, callbacks and loggers."""

    def __init__(self, args: list[str]) -> None:
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        super().__init__(
            TokenizerTask, LightningDataModule, subclass_mode_data=True, auto_configure_optimizers=False,
            load_from_checkpoint_support=False, seed_everything_default=0, args=args,
            save_config_kwargs={"overwrite": True},
            # omegaconf+ resolves interpolations once, after the command line; plain omegaconf does it per file
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False},
            trainer_defaults={"max_epochs": -1, "log_every_n_steps": 50, "num_sanity_val_steps": 0},
        )  # fmt: skip

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in COMMANDS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, help="name of the run")
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--wandb", type=bool, default=True, help="log to Weights & Biases (offline without a key)")
        parser.add_argument("--project", type=str, default="mmtok", help="Weights & Biases project")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(Export, "export")
        parser.add_lightning_class_args(MediaGrid, "media")
        parser.add_lightning_class_args(Watch, "watch")
        parser.add_lightning_class_args(Manifest, "manifest")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # without the warning about sys.argv

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.folder = Path(config.runs) / config.name
        self._choose_checkpoint(config)
        _refuse_trainer_options(config.trainer)
        if config.trainer.strategy == "auto" and _processes(config.trainer) > 1:
            # generator and discriminator use disjoint parameters in each backward pass; plain DDP raises
            config.trainer.strategy = "ddp_find_unused_parameters_true"
        config.trainer.default_root_dir = str(self.folder)
        config.weights_only = True  # a checkpoint holds tensors and plain values: nothing is unpickled

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        # what `hub.save` writes beside the weights: class paths and every argument, interpolations resolved
        node = self.config[self.subcommand].model.tokenizer
        self.model.tokenizer.config = node.as_dict() if isinstance(node, Namespace) else node

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[self.subcommand]
        if config.trainer.logger is None or config.trainer.logger is True:
            loggers: list[Any] = [CSVLog(self.folder)]
            if config.wandb and self.subcommand == "fit":
                loggers.append(wandb_logger(self.folder, config.name, config.project))
            kwargs["logger"] = loggers
        if config.trainer.enable_progress_bar is not False:
            given = self._get(self.config_init, "trainer").get("callbacks") or []
            kwargs["callbacks"] = [*(given if isinstance(given, list) else [given]), ProgressBar()]
        if SLURMEnvironment.detect() and not config.trainer.plugins:
            # Lightning's own requeueing saves inside the signal handler; ours ends the step first
            kwargs["plugins"] = [SLURMEnvironment(auto_requeue=False)]
        return super().instantiate_trainer(**kwargs)

    def _choose_checkpoint(self, config: Namespace) -> None:
        """`last` becomes the run's newest checkpoint, or none when the run has not begun."""
        newest = latest(self.folder / "checkpoints", config.ckpt_path == "last" and _first_process())
        if config.ckpt_path == "last":
            config.ckpt_path = None if newest is None else str(newest)
            if newest is None and self.subcommand != "fit":
                raise ValueError(f"--ckpt_path last: {self.folder / 'checkpoints'} holds no checkpoint")
        elif config.ckpt_path is not None and not Path(config.ckpt_path).is_file():
            raise ValueError(f"--ckpt_path: {config.ckpt_path} does not exist")
        elif config.ckpt_path is None and self.subcommand == "fit" and newest is not None and _first_process():
            raise ValueError(
                f"{self.folder} already holds a run: add --ckpt_path last to go on with it, or --name for another one"
            )


def _with_one_file(args: list[str], folder: Path) -> list[str]:
    """Replaces all `-c FILE` by one merged file (bases and `tiny` applied), so that class changes merge as a whole."""
    if not args or args[0] not in COMMANDS:
        return args
    rest, files, tiny = [args[0]], [], False
    queue = iter(args[1:])
    for arg in queue:
        if arg == "--apply_tiny":
            tiny = True
        elif arg in ("-c", "--config"):
            files.append(next(queue, ""))
        elif arg.startswith(("--config=", "-c=")):
            files.append(arg.split("=", 1)[1])
        else:
            rest.append(arg)
    if not files:
        if tiny:
            raise ValueError("--apply_tiny needs a configuration file: add -c FILE")
        return rest
    config: dict[str, Any] = {}
    own = [file for file in files if Path(file).parent.name != "base"] or files  # base/slurm.yaml is laid on a recipe
    for file in files:
        # a recipe by the name `mmtok list` prints: an installed package has no configs/ folder beside it
        path = config_path(file) if not Path(file).exists() and file in recipes() else file
        config = merge(config, read_config_file(path, tiny and file in own))
    config.setdefault("name", Path(own[-1]).stem)
    merged = folder / Path(files[-1]).name
    merged.write_text(yaml.safe_dump(config, sort_keys=False))
    return [rest[0], "--config", str(merged), *rest[1:]]


def _first_process() -> bool:
    """Whether nobody of this very start can have written the run's checkpoint."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def _refuse_trainer_options(trainer: Namespace) -> None:
    for theirs, ours, unset in (
        ("gradient_clip_val", "clip_norm", (None,)), ("accumulate_grad_batches", "accumulate", (None, 1)),
    ):  # fmt: skip
        if trainer[theirs] not in unset:
            raise ValueError(f"trainer.{theirs} does not reach two optimizers: use model.{ours}")


def _processes(trainer: Namespace) -> int:
    """Processes that the Trainer will start, as far as it matters for the strategy."""
    devices = trainer.devices
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        count = len(devices)
    elif devices in ("auto", -1):
        cuda = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        count = torch.cuda.device_count() if cuda else 1
    else:
        count = int(devices) if isinstance(devices, int) else len(str(devices).split(","))
    return count * int(trainer.num_nodes)


def _fail(error: Exception, folder: str) -> None:
    if os.environ.get("MMTOK_DEBUG"):
        raise error
    # the merged file lives in a folder of ours: its name alone is what the user knows
    text = " ".join(str(error).replace(f"{folder}{os.sep}", "").split())
    print(f"mmtok train: error: {text} (MMTOK_DEBUG=1 shows where)", file=sys.stderr)
    raise SystemExit(2) from None
