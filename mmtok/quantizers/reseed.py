"""What keeps a learned codebook alive: restarts of dead codes, and CVQ's pull of rare codes towards the data.

Legend: n vectors of this process, D dimensions, V codes. Every function ends equal on all processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.kernels import nearest_code
from mmtok.quantizers.processes import nearest_over_processes, sample_rows

CANDIDATES = 256  # vectors a process offers per step


def dead_codes(usage: Tensor, revival: float) -> Tensor:
    """int64: the codes whose running share of the vectors fell under revival / V."""
    return (usage < revival / len(usage)).nonzero()[:, 0]


def restarts(usage: Tensor, revival: float, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(codes [m], vectors [m, D]): dead codes and the batch vectors they restart at, drawn from all processes."""
    dead = dead_codes(usage, revival)
    if not len(dead):  # usage is equal everywhere, so every process leaves here or none
        return dead, vectors[:0]
    candidates = sample_rows(vectors, CANDIDATES)
    count = min(len(dead), len(candidates))
    return dead[:count], candidates[:count]


def cvq_pull(codebook: Tensor, vectors: Tensor, usage: Tensor, decay: float) -> Tensor:
    """Codebook [V, D] with every code moved towards its nearest vector, the more the rarer it is.

    New code = (1 - a) old + a nearest, a = exp(-10 V usage / (1 - decay) - 1e-3) (Online Clustered Codebook,
    arXiv 2307.15139, equations 4 to 6; the nearest vector is sought over all processes).
    """
    if len(vectors):
        codes, distances = nearest_code(codebook, vectors)
        nearest = vectors[codes]
    else:
        nearest, distances = codebook, torch.full_like(usage, torch.inf)
    nearest = nearest_over_processes(distances, nearest)
    pull = torch.exp(-10 * len(usage) * usage / (1 - decay) - 1e-3)[:, None]
    return codebook * (1 - pull) + nearest * pull
