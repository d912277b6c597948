"""What happens to a tokenizer before training: loading, freezing, compiling, recomputing activations."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmtok import hub
from mmtok.quantizers.base import Quantizer
from mmtok.tokenizer import Tokenizer
from mmtok.training.config_file import read_config_file

log = logging.getLogger(__name__)


def load_or_build(source: str) -> Tokenizer:
    """The tokenizer of a recipe (.yaml), fresh, or a saved one by folder or name."""
    if not source.endswith(".yaml"):
        return hub.load(source)
    config = OmegaConf.create(read_config_file(source))
    return hub.build(OmegaConf.to_container(config.model.tokenizer, resolve=True))  # type: ignore[arg-type]


def freeze(tokenizer: nn.Module, patterns: Iterable[str]) -> list[nn.Module]:
    """Stops gradients of modules and parameters whose name matches; returns the modules, which must stay in eval mode.

    "encoder" freezes that module with its statistics (an EMA codebook learns in training mode, without gradients);
    "decoder.*.bias" freezes parameters. ValueError for a pattern that matches nothing.
    """
    modules = []
    for pattern in patterns:
        named = [module for name, module in tokenizer.named_modules() if name and fnmatchcase(name, pattern)]
        parameters = [p for name, p in tokenizer.named_parameters() if fnmatchcase(name, pattern)]
        if not named and not parameters:
            raise ValueError(f"model.freeze: pattern {pattern!r} matches no module and no parameter of the tokenizer")
        for parameter in [*parameters, *(p for module in named for p in module.parameters())]:
            parameter.requires_grad_(False)
        modules += named
    return modules


def init_from(tokenizer: nn.Module, source: str, ignore: Iterable[str]) -> str | None:
    """Copies the weights of a saved tokenizer, or of a training checkpoint (.ckpt; averaged weights when it has them).

    ignore  patterns of keys that may be missing, unknown or of another shape; each one left out is logged by name
    Returns the checkpoint's path when `source` is one. ValueError names the first key that does not fit.
    """
    is_checkpoint = source.endswith(".ckpt")
    given = _checkpoint_weights(Path(source)) if is_checkpoint else hub.load(source).state_dict()
    wanted = tokenizer.state_dict()
    fits = {key: value for key, value in given.items() if key in wanted and wanted[key].shape == value.shape}
    left_out = sorted((set(wanted) | set(given)) - set(fits))
    for key in left_out:
        if not any(fnmatchcase(key, pattern) for pattern in ignore):
            reason = "another shape" if key in wanted and key in given else "not there" if key in wanted else "unknown"
            raise ValueError(
                f"model.init_from: {key} of {source} is {reason}; add a pattern to model.init_ignore to go without it"
            )
    if left_out:
        log.warning("init_from %s: left out %s", source, ", ".join(left_out))
    tokenizer.load_state_dict(fits, strict=False)
    return source if is_checkpoint else None


def compile_modules(tokenizer: Tokenizer, names: Iterable[str]) -> None:
    """Compiles submodules in place (their keys keep their names); a quantizer is refused."""
    for name, module in _submodules(tokenizer, names, "compile"):
        if any(isinstance(part, Quantizer) for part in module.modules()):
            raise ValueError(f"model.compile: {name} holds the quantizer, which stays out; compile encoder and decoder")
        module.compile()


def recompute_activations(tokenizer: Tokenizer, names: Iterable[str]) -> None:
    """Submodules keep no activations: their forward runs again in the backward pass."""
    for name, module in _submodules(tokenizer, names, "recompute"):
        if any(isinstance(part, Quantizer) for part in module.modules()):
            raise ValueError(f"model.recompute: {name} holds the quantizer, whose statistics would count twice")
        module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]


def _submodules(tokenizer: Tokenizer, names: Iterable[str], key: str) -> list[tuple[str, nn.Module]]:
    """Modules by exact name or pattern; ValueError when one matches nothing."""
    found: list[tuple[str, nn.Module]] = []
    for pattern in names:
        matches = [(name, module) for name, module in tokenizer.named_modules() if name and fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(f"model.{key}: {pattern!r} matches no module of the tokenizer")
        found += matches
    return found


def _checkpoint_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"model.init_from: {path} does not exist")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    prefix = "tokenizer."
    state = {key.removeprefix(prefix): v for key, v in saved["state_dict"].items() if key.startswith(prefix)}
    return state | saved.get("ema", {}).get("averages", {})
