"""Which samples made a gradient non-finite, and on which process."""

from __future__ import annotations

import socket
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmtok.types import Batch

SHOWN = 4  # keys a process


def suspect(batch: Batch, loss: Tensor) -> list[Tensor | tuple[str, ...]]:
    """What `name_suspects` needs of one batch; nothing is read back from the device."""
    return [torch.isfinite(loss.detach()) & torch.isfinite(batch.x.detach().sum()), batch.keys]


def name_suspects(noted: list[Any]) -> str:
    """Keys, rank and host of the batches whose input or loss was not finite; of all batches when each looked fine.

    noted  the lists of `suspect`, end to end. Called on all processes, since each knows only its own.
    """
    bad = [key for finite, keys in zip(noted[::2], noted[1::2], strict=True) if not bool(finite) for key in keys]
    every = [key for keys in noted[1::2] for key in keys]
    mine = (socket.gethostname(), bad[:SHOWN], every[:SHOWN])
    rows = [mine]
    if dist.is_available() and dist.is_initialized():
        rows = [mine] * dist.get_world_size()
        dist.all_gather_object(rows, mine)
    found = any(row[1] for row in rows)
    return "; ".join(
        f"{', '.join(row[1] if found else row[2])} (rank {rank} on {row[0]})"
        for rank, row in enumerate(rows) if row[1] or not found
    )  # fmt: skip


def restore_statistics(module: nn.Module) -> None:
    """Starts running statistics of batch norms anew where a non-finite batch has entered them."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None:
            finite = torch.isfinite(part.running_mean).all() & torch.isfinite(part.running_var).all()
            if not bool(finite):
                part.reset_running_stats()
