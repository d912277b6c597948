"""Weight normalization (arXiv 1602.07868) as a parametrization that can be folded into the weight and unfolded."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrizations import weight_norm as _parametrize


def weight_norm(module: nn.Module) -> nn.Module:
    """The module with weight = g * v / |v|, norms over all axes but the first (input channels of a transposed conv)."""
    return _parametrize(module, dim=0)


def is_weight_normed(module: nn.Module) -> bool:
    """Whether this module itself (not its children) carries weight normalization, and no other parametrization."""
    if not parametrize.is_parametrized(module, "weight"):
        return False
    found = module.parametrizations
    if not isinstance(found, nn.ModuleDict) or len(found) != 1:
        return False
    parts = found["weight"]
    return isinstance(parts, nn.ModuleList) and isinstance(parts[0], _WeightNorm)


def fold_weight_norm(module: nn.Module) -> list[str]:
    """Replaces g and v by plain weights in the whole tree: same outputs, less work a call. Names of what was folded."""
    names = [name for name, child in module.named_modules() if is_weight_normed(child)]
    for name in names:
        _fold(module.get_submodule(name))
    return names


def unfold_weight_norm(module: nn.Module, names: list[str]) -> None:
    """The inverse of `fold_weight_norm`: g becomes the norm of the weight, v the weight."""
    for name in names:
        weight_norm(module.get_submodule(name))


def _fold(layer: nn.Module) -> None:
    # torch's remove_parametrizations also strips the class it made, which deep copies of the layer share: folding an
    # average of the weights would break the model that is training
    weight = nn.Parameter(layer.weight.detach().clone())  # type: ignore[operator,union-attr]
    layer.__class__ = type(layer).__bases__[0]
    del layer.parametrizations
    layer.weight = weight
