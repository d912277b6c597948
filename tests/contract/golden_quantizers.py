"""Reading golden folders and comparing with them, for the tests of quantizers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmtok.quantizers.vq import VQ

ROOT = Path(__file__).parents[1] / "golden"
State = dict[str, Tensor]


def load(name: str) -> tuple[State, State]:
    """Inputs and outputs, and weights in float32."""
    io, weights = (load_file(ROOT / name / f"{part}.safetensors") for part in ("io", "weights"))
    return io, {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def close(ours: Tensor, theirs: Tensor, rtol: float = 1e-4, atol: float = 2e-5) -> None:
    torch.testing.assert_close(ours.detach(), theirs, rtol=rtol, atol=atol, check_stride=False)


def same_gradient(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-4 of the largest value."""
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def first(tokens_last: Tensor) -> Tensor:
    """Channels moved from the last axis to axis 1."""
    return tokens_last.movedim(-1, 1)


def rows(grids: tuple[Tensor, ...]) -> Tensor:
    """All scales in one row."""
    return torch.cat([grid.flatten(1) for grid in grids], 1)


def with_table(quantizer: VQ, table: Tensor) -> VQ:
    quantizer.codebook.data.copy_(table)
    return quantizer
