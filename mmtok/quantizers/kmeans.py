"""k-means: the first codebook of a run, codebooks fitted offline, and the frozen quantizer that uses them.

Legend: n vectors of one process or batch, D dimensions, V codes. Memory is n x D plus V x D, never n x V.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.kernels import code_sums, nearest_code
from mmtok.quantizers.base import (
    Quantizer,
    check_codes,
    code_stats,
    from_vectors,
    full_precision,
    keep_mask,
    to_vectors,
)
from mmtok.quantizers.processes import active, sample_rows, sum_over_processes, world
from mmtok.quantizers.reseed import CANDIDATES
from mmtok.types import Quantized


class FrozenKMeans(Quantizer):
    """Nearest of fixed centroids (DiGIT, HuBERT units, SemantiCodec): nothing is learned, so there are no losses.

    z [B, D, *S] -> one grid int64 [B, 1, *S]. The gradient passes straight through while training.
    `codebook` [V, D] is filled by a checkpoint or by `quantizer.codebook.copy_(fit_kmeans(...))`.
    """

    codebook: Tensor

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        if dim < 1 or codebook_size < 1:
            raise ValueError(f"quantizer: dim and codebook_size must be positive, got {dim} and {codebook_size}")
        self.dim = dim
        self.codebook_sizes = ((codebook_size,),)
        self.register_buffer("codebook", torch.randn(codebook_size, dim))

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        mask, rows = keep_mask(keep, z)
        vectors = to_vectors(z)
        codes = nearest_code(vectors.detach(), self.codebook.float())[0]
        quantized = F.embedding(codes, self.codebook.float())
        out = from_vectors(vectors + (quantized - vectors).detach() if self.training else quantized, z)
        grid = codes.view(z.shape[0], 1, *z.shape[2:])
        if mask is not None:
            out, grid = out.masked_fill(~mask, 0), grid * mask
        return Quantized(out, (grid,), {}, code_stats(codes, self.codebook_sizes[0][0], rows))

    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        out = F.embedding(grids[0][:, 0], self.codebook.float()).movedim(-1, 1)
        return out if keep is None else out.masked_fill(~keep[0], 0)


@torch.no_grad()
def kmeans_of_batch(vectors: Tensor, size: int, steps: int) -> Tensor | None:
    """Centroids float32 [V, D] of the vectors [n, D] of all processes, equal on every process; None without vectors.

    Starts at random vectors of all ranks in turn; a cluster that stays empty restarts at another one. With fewer
    vectors than codes some repeat: the extra codes are dead and left to revival.
    """
    share = -(-size // world())  # the message stays near V x D for any number of processes
    start = sample_rows(vectors, share)
    if not len(start):
        return None
    centroids = start[torch.arange(size, device=vectors.device) % len(start)].clone()
    for _ in range(steps):
        counts, sums = code_sums(vectors, nearest_code(vectors, centroids)[0], size)
        counts, sums = sum_over_processes(counts, sums)
        centroids = _move(centroids, counts, sums, sample_rows(vectors, min(share, CANDIDATES)))
    return centroids


@torch.no_grad()
def fit_kmeans(
    batches: Callable[[], Iterable[Tensor]], size: int, steps: int = 20, seed: int = 0
) -> Tensor:
    """Centroids float32 [V, D] by Lloyd's algorithm over data too large for memory.

    batches  called once a pass; yields float [n, D]. Each pass reads all of it and moves every centroid once
    size     V
    seed     of the random vectors that start it (reservoir sampling over the first pass) and refill empty clusters

    The mean squared distance never rises from pass to pass, refilled clusters aside. ValueError without any vector
    or when several processes call it (run it in one).
    """
    if active():
        raise ValueError("fit_kmeans: run it in a single process")
    generator = torch.Generator().manual_seed(seed)
    centroids = _reservoir(batches(), size, generator)
    spare = centroids
    for _ in range(steps):
        counts = centroids.new_zeros(size)
        sums = torch.zeros_like(centroids)
        for batch in batches():
            vectors = batch.to(centroids)
            more, moved = code_sums(vectors, nearest_code(vectors, centroids)[0], size)
            counts += more
            sums += moved
            picks = torch.randint(len(vectors), (min(size, len(vectors)),), generator=generator)
            spare = vectors[picks.to(vectors.device)]
        centroids = _move(centroids, counts, sums, spare)
    return centroids


def _move(centroids: Tensor, counts: Tensor, sums: Tensor, spare: Tensor) -> Tensor:
    """Means of the clusters; empty ones take spare vectors while there are any."""
    moved = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
    empty = (counts == 0).nonzero()[: len(spare), 0]
    moved[empty] = spare[: len(empty)]
    return moved


def _reservoir(batches: Iterable[Tensor], size: int, generator: torch.Generator) -> Tensor:
    """`size` vectors of the stream, each with the same chance; repeated when the stream is shorter."""
    kept: Tensor | None = None
    keys = torch.zeros(0)
    for batch in batches:
        vectors = batch.float()
        kept = vectors[:0] if kept is None else kept
        # the `size` largest of independent uniform keys are a uniform sample
        keys = torch.cat([keys, torch.rand(len(vectors), generator=generator)])
        top = keys.topk(min(size, len(keys)))
        kept, keys = torch.cat([kept, vectors])[top.indices.to(vectors.device)], top.values
    if kept is None or not len(kept):
        raise ValueError("fit_kmeans: the batches hold no vector")
    return kept[torch.arange(size, device=kept.device) % len(kept)].clone()
