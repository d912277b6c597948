"""The one LightningModule: trains any tokenizer with any objective."""

from __future__ import annotations

import logging
import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from mmtok.tokenizer import Tokenizer
from mmtok.training import prepare
from mmtok.training.ema import EMA
from mmtok.training.meters import SpeedMeter, UsageMeter
from mmtok.training.objective import Objective
from mmtok.training.optimizers import Schedule, parameter_groups, scale_learning_rates, set_learning_rate
from mmtok.training.steps import average_gradients, clip, frozen, seed_step, uncounted
from mmtok.training.suspects import name_suspects, restore_statistics, suspect
from mmtok.training.validation import Validation
from mmtok.types import Batch

log = logging.getLogger(__name__)


class TokenizerTask(pl.LightningModule):
    """A generator update (tokenizer), then a discriminator update; `global_step` counts generator updates only.

    tokenizer, objective       what is trained, and towards what
    generator_optimizer        makes the tokenizer's optimizer from parameter groups
    discriminator_optimizer    needed when the objective has discriminators
    generator_schedule, discriminator_schedule  factor on the learning rate by generator step
    groups                     pattern of parameter names -> settings, e.g. {"prior.*": {"lr_scale": 50}}
    no_decay                   patterns of parameters without weight decay
    discriminator_every        generator steps per discriminator update
    clip_norm                  gradient norm limit of each optimizer; null never clips
    accumulate                 batches per update
    freeze                     patterns of tokenizer modules and parameters that stay as they are
    init_from, init_ignore     start from these weights; patterns of keys that may be left out
    compile, recompute         submodules to compile; to run again in the backward pass instead of keeping activations
    ema                        average of the weights, used in validation and export
    validation                 lengths and metrics
    max_bad_steps              updates in a row with a non-finite gradient (each is skipped) that stop the run
    """

    def __init__(
        self, tokenizer: Tokenizer, objective: Objective, generator_optimizer: OptimizerCallable,
        discriminator_optimizer: OptimizerCallable | None = None, generator_schedule: Schedule | None = None,
        discriminator_schedule: Schedule | None = None, groups: dict[str, dict[str, float]] | None = None,
        no_decay: list[str] | None = None, discriminator_every: int = 1, clip_norm: float | None = 1.0,
        accumulate: int = 1, freeze: list[str] | None = None, init_from: str | None = None,
        init_ignore: list[str] | None = None, compile: list[str] | None = None, recompute: list[str] | None = None,
        ema: EMA | None = None, validation: Validation | None = None, max_bad_steps: int = 10,
    ) -> None:
        super().__init__()
        if objective.discriminators() and discriminator_optimizer is None:
            raise ValueError("model.discriminator_optimizer is missing: the objective has a discriminator")
        if min(discriminator_every, accumulate, max_bad_steps) < 1 or (clip_norm is not None and clip_norm <= 0):
            raise ValueError("model: discriminator_every, accumulate, max_bad_steps and clip_norm must be positive")
        self.automatic_optimization = False
        self.tokenizer, self.objective, self.ema = tokenizer, objective, ema
        self.generator_optimizer, self.discriminator_optimizer = generator_optimizer, discriminator_optimizer
        self.generator_schedule = generator_schedule or Schedule()
        self.discriminator_schedule = discriminator_schedule or Schedule()
        self.groups, self.no_decay = groups or {}, no_decay or []
        self.discriminator_every, self.clip_norm, self.accumulate = discriminator_every, clip_norm, accumulate
        self.init_from, self.init_ignore = init_from, init_ignore or []
        self.compile_names, self.recompute_names = compile or [], recompute or []
        self.validation = validation or Validation()
        self.max_bad_steps = max_bad_steps
        self.objective.bind(tokenizer)
        self._resting = prepare.freeze(tokenizer, freeze or [])
        self.batches = 0  # seen since the start of the run, over restarts
        self.skipped = self._micro = 0
        self._suspects: list[Tensor | tuple[str, ...]] = []  # finite or not, and keys, of the batches of this update
        self._bad = {"generator": 0, "discriminator": 0}  # updates skipped in a row
        self.shown: dict[str, float] = {}  # what was logged last
        self.speed, self.usage = SpeedMeter(), UsageMeter()

    # ---- set-up -----------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[pl.Callback]:
        """No callbacks: the earliest hook, where the Trainer's own options can be refused by the name of ours."""
        if self.trainer.gradient_clip_val:
            raise ValueError("trainer.gradient_clip_val does not reach two optimizers: use model.clip_norm")
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError("trainer.accumulate_grad_batches does not reach two optimizers: use model.accumulate")
        if self._half and self.clip_norm is not None:
            raise ValueError("trainer.precision 16-mixed cannot clip scaled gradients: use bf16-mixed or no clip_norm")
        return []

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        if self.init_from and not self.trainer.ckpt_path:
            prepare.init_from(self.tokenizer, self.init_from, self.init_ignore)
        prepare.recompute_activations(self.tokenizer, self.recompute_names)
        prepare.compile_modules(self.tokenizer, self.compile_names)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self._discriminators = self.objective.discriminators()
        self._disc_parameters = [p for module in self._discriminators for p in module.parameters() if p.requires_grad]
        theirs = {id(p) for p in self._disc_parameters}
        named = [(n, p) for n, p in self.tokenizer.named_parameters() if p.requires_grad]
        named += [(f"objective.{n}", p) for n, p in self.objective.named_parameters() if id(p) not in theirs]
        if not named:
            raise ValueError("model.freeze leaves nothing to train")
        self._gen_parameters = [p for _, p in named]
        optimizers = [self.generator_optimizer(parameter_groups(named, self.groups, self.no_decay))]
        if self._discriminators and self.discriminator_optimizer is not None:
            optimizers.append(self.discriminator_optimizer(self._disc_parameters))
        return [scale_learning_rates(optimizer) for optimizer in optimizers]

    def train(self, mode: bool = True) -> TokenizerTask:
        super().train(mode)
        for module in self._resting:
            module.eval()
        return self

    # ---- training -------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        self.train()
        self.speed.restart()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.speed.batch_begins()
        seed_step(int(os.environ.get("PL_GLOBAL_SEED", 0)), self.batches, self.global_rank)
        self.batches += 1

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        step = self.global_step
        self._micro += 1
        last = self._micro == self.accumulate
        disc_turn = bool(self._discriminators) and step % self.discriminator_every == 0
        with self._synchronised(last):
            with frozen(self._discriminators):
                recon = self.tokenizer(batch, self.progress)
                terms = self.objective.generator(recon, batch, step)
                total = _sum(terms)
                self.manual_backward(total / self.accumulate)
            disc_terms = self.objective.discriminator(recon, batch, step) if disc_turn else {}
            if disc_terms:
                self.manual_backward(_sum(disc_terms) / self.accumulate)
        self.usage.update(recon.tokens)
        self._suspects += suspect(batch, total)
        if not last:
            return
        self._micro = 0
        rates = self._update(step, bool(disc_terms))
        self._suspects = []
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            logs = {f"loss/{name}": value for name, value in (terms | disc_terms).items()} | {"loss/total": total}
            logs |= {f"code/{name}": value for name, value in recon.stats.items()}
            logs |= {f"stat/{name}": value for name, value in self.objective.stats().items()}
            self._log(logs | rates | self.usage.read() | self.speed.read(self.trainer.world_size))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.speed.batch_ends(len(batch.keys))

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        if self.trainer.max_steps and self.trainer.max_steps > 0:
            return min(1.0, self.global_step / self.trainer.max_steps)
        return min(1.0, self.current_epoch / self.trainer.max_epochs) if self.trainer.max_epochs else 0.0

    @property
    def at_update(self) -> bool:
        """Whether no gradient is being accumulated: only then is a checkpoint exact."""
        return self._micro == 0

    def _update(self, step: int, with_discriminator: bool) -> dict[str, Any]:
        """Both optimizers' updates; a non-finite gradient (the same on all ranks) skips its update."""
        optimizers: Any = self.optimizers(use_pl_optimizer=True)
        generator, *discriminator = optimizers if isinstance(optimizers, list) else [optimizers]
        logs: dict[str, Any] = {"lr/generator": set_learning_rate(generator.optimizer, self.generator_schedule(step))}
        if self._averages_itself:
            average_gradients(self._gen_parameters)
        norm = clip(self._gen_parameters, self.clip_norm)
        logs["grad_norm/generator"] = norm
        good = self._usable("generator", norm)
        if good:
            generator.step()
            if self.ema is not None:
                self.ema.update(self.tokenizer, step + 1)
        generator.zero_grad()
        if with_discriminator:
            (optimizer,) = discriminator
            logs["lr/discriminator"] = set_learning_rate(optimizer.optimizer, self.discriminator_schedule(step))
            if self._averages_itself:
                average_gradients(self._disc_parameters)
            norm = clip(self._disc_parameters, self.clip_norm)
            logs["grad_norm/discriminator"] = norm
            if self._usable("discriminator", norm) and good:
                with uncounted(optimizer):
                    optimizer.step()
            optimizer.zero_grad()
        logs["train/skipped"] = float(self.skipped)
        return logs

    def _log(self, logs: dict[str, Any]) -> None:
        """One call per logger. `self.log_dict` would cost milliseconds a step, and count batches instead of updates."""
        self.shown = {name: float(v.detach() if isinstance(v, Tensor) else v) for name, v in logs.items()}
        for logger in self.loggers:
            logger.log_metrics(self.shown, step=self.global_step)

    def _usable(self, which: str, norm: Tensor) -> bool:
        # one read per update, as a gradient scaler does; with 16-mixed the scaler itself skips and must see infinities.
        # Gradients are averages over processes by now, so that all of them decide alike
        if self._half or math.isfinite(float(norm)):
            self._bad[which] = 0
            return True
        self.skipped += 1
        self._bad[which] += 1
        restore_statistics(self)
        where = name_suspects(self._suspects)
        if self._bad[which] >= self.max_bad_steps:
            raise ValueError(
                f"model.max_bad_steps: {self._bad[which]} {which} updates in a row had a non-finite gradient; lower the"
                f" learning rate or look at samples {where}"
            )
        log.warning("step %d: %s update skipped, gradient not finite; samples %s", self.global_step, which, where)
        return False

    @property
    def _averages_itself(self) -> bool:
        """Whether gradients are averaged here, once an update, instead of by DDP in every backward pass.

        So it is when batches are accumulated with a discriminator: DDP's map of used parameters survives `no_sync`, and
        the generator's synchronised pass would then reduce half-accumulated gradients of the discriminator (it raises).
        """
        parallel = isinstance(self.trainer.strategy, ParallelStrategy)
        return self.accumulate > 1 and bool(self._discriminators) and parallel

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients travel between processes only for the last batch of an update."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, ParallelStrategy) or (last and not self._averages_itself):
            return nullcontext()
        return strategy.block_backward_sync()

    @property
    def _half(self) -> bool:
        return str(self.trainer.precision).startswith("16")

    # ---- validation -----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.validation.restart()
        if self.ema is not None and not self.ema.swapped:
            self.ema.swap(self.tokenizer)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation.update(self.tokenizer, batch)

    def on_validation_epoch_end(self) -> None:
        # swapped back here and not later: checkpoints are written in on_validation_end
        if self.ema is not None and self.ema.swapped:
            self.ema.swap(self.tokenizer)
        self.log_dict(self.validation.compute() | {"step": float(self.global_step)})
        self.speed.restart()

    on_test_epoch_start, test_step, on_test_epoch_end = (
        on_validation_epoch_start, validation_step, on_validation_epoch_end,
    )  # fmt: skip

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches"], checkpoint["skipped"] = self.batches, self.skipped
        if self.ema is None:
            return
        state = self.ema.state_dict()
        if self.ema.swapped:  # interrupted inside a validation: what is live is the average
            for name, parameter in list(state["averages"].items()):
                state["averages"][name] = checkpoint["state_dict"][f"tokenizer.{name}"]
                checkpoint["state_dict"][f"tokenizer.{name}"] = parameter
        checkpoint["ema"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved, own = checkpoint["state_dict"], self.state_dict()
        for key in sorted(set(saved) ^ set(own)) or [k for k in own if own[k].shape != saved[k].shape]:
            raise ValueError(
                f"--ckpt_path: {key} of the checkpoint does not fit the model of this configuration; to start a new run"
                " from its weights use model.init_from"
            )
        self.batches, self.skipped = checkpoint["batches"], checkpoint["skipped"]
        if self.ema is not None and "ema" in checkpoint:
            self.ema.load_state_dict(checkpoint["ema"], self.tokenizer)


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


