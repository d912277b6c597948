"""Entropy-coding tables: how often each code occurs in training data, and after which other, stored with the weights.

Legend: B batch, K codebooks of a grid, S positions, V codes, C classes of a context, n codes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mmtok.code_tables import CodeTables, Context, earlier
from mmtok.coder import code_shares, fit_table
from mmtok.quantizers.kmeans import kmeans_of_batch
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch

CLASSES = 64  # of a context, where the source has more than twice as many codes
LARGEST = 4096  # codebooks above have no context: pairs of codes are too many to be counted
LEAST = 0.1  # bits a code that a context must save
HELD_OUT = 5  # every fifth batch says which context saves most
BLENDS = (8.0, 32.0, 128.0)  # counts of the plain table that are added to those of a class
_WEIGHT = (1 << 15) - 1  # largest weight of a row


@torch.no_grad()
def fit_tables(tokenizer: Tokenizer, batches: Iterable[Batch]) -> int:
    """Gives the tokenizer its `CodeTables`, from the codes of these batches; returns the number of codes.

    A context is added to a codebook when it saves at least `LEAST` bits a code on batches that did not fit it. Fit on
    training data only: a table that has seen the test set hides bits it does not pay for. The tokenizer is left in the
    mode it was in.
    """
    device = next(tokenizer.parameters()).device
    books = tokenizer.quantizer.codebook_sizes
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in books]
    was_training = tokenizer.training
    tokenizer.eval()
    for batch in batches:
        tokens = tokenizer.encode(batch.to(device)).to("cpu")
        for index, (grid, mask) in enumerate(zip(tokens.grids, tokens.keep, strict=True)):
            seen[index].append((grid.to(torch.int32), mask.expand_as(grid)))
    tokenizer.train(was_training)
    count = sum(int(mask.sum()) for grids in seen for _, mask in grids)
    if count:
        plain = tuple(_plain(grids, sizes) for grids, sizes in zip(seen, books, strict=True))
        found = [
            _context(grids, index, k, sizes)
            for index, (grids, sizes) in enumerate(zip(seen, books, strict=True)) for k in range(len(sizes))
        ]  # fmt: skip
        tokenizer.tables = CodeTables(plain, tuple(context for context in found if context is not None))
    return count


def _plain(grids: list[tuple[Tensor, Tensor]], sizes: tuple[int, ...]) -> Tensor:
    """int32 [K, V]; columns past a codebook's own size are 0 and never read."""
    out = torch.zeros(len(sizes), max(sizes), dtype=torch.int32)
    for k, size in enumerate(sizes):
        sent = torch.cat([grid[:, k][mask[:, k]] for grid, mask in grids])
        out[k, :size] = fit_table(torch.bincount(sent, minlength=size))
    return out


def _context(grids: list[tuple[Tensor, Tensor]], index: int, k: int, sizes: tuple[int, ...]) -> Context | None:
    """The context that saves most, or None."""
    if len(grids) < 2:
        return None  # nothing is left to tell what a context saves
    size, axes = sizes[k], grids[0][0].dim() - 2
    near = [j for j in (k, k - 1, k + 1) if 0 <= j < len(sizes)]
    looks: list[tuple[int, int | None]] = [(j, axis) for axis in range(axes) for j in near]
    looks += [(j, None) for j in dict.fromkeys((k - 1, 0)) if 0 <= j < k]
    best, saved = None, LEAST
    for source, axis in looks:
        if max(size, sizes[source]) > LARGEST:
            continue
        pairs = [_pairs(grid, mask, k, source, axis) for grid, mask in grids]
        fit = torch.cat([pair for i, pair in enumerate(pairs) if i % HELD_OUT], 1)
        test = torch.cat([pair for i, pair in enumerate(pairs) if i % HELD_OUT == 0], 1)
        if fit.shape[1] < 4 * size or not test.shape[1]:
            continue
        classes = _classes(_counts(fit[:, fit[0] >= 0], torch.arange(sizes[source]), size)[:-1].float())
        counts = _counts(fit, classes, size)
        base = code_shares(counts.sum(0))
        plain_bits = -base.log2()[test[1]].mean()
        for blend in BLENDS:
            shares = _shares(counts, base, blend)
            gain = float(plain_bits + shares.log2()[_at(classes, test[0]), test[1]].mean())
            if gain >= saved and (best is None or gain > saved):
                best, saved = (source, axis, classes, blend, torch.cat([fit, test], 1)), gain
    if best is None:
        return None
    source, axis, classes, blend, both = best
    counts = _counts(both, classes, size)
    return Context(index, k, source, axis, classes, _weights(_shares(counts, code_shares(counts.sum(0)), blend)))


def _pairs(grid: Tensor, mask: Tensor, k: int, source: int, axis: int | None) -> Tensor:
    """int64 [2, n]: the code that is looked at (-1: none), then the code, of all sent codes of codebook k."""
    sent = mask[:, k]
    return torch.stack([earlier(grid, mask, source, axis)[sent], grid[:, k][sent]]).long()


def _counts(pairs: Tensor, classes: Tensor, size: int) -> Tensor:
    """int64 [C + 1, size]: how often each code comes after each class; the last row after none."""
    rows = int(classes.max()) + 2
    return torch.bincount(_at(classes, pairs[0]) * size + pairs[1], minlength=rows * size).view(rows, size)


def _classes(counts: Tensor) -> Tensor:
    """int64 [V_source]: codes with like successors share a class (correspondence analysis, then k-means)."""
    if len(counts) <= 2 * CLASSES:
        return torch.arange(len(counts))
    rows, columns = counts.sum(1, keepdim=True), counts.sum(0, keepdim=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, _ = torch.svd_lowrank(counts / (rows * columns).clamp(min=1).sqrt(), q=min(24, *counts.shape), niter=4)
        places = (u * s)[:, 1:] / (rows / rows.sum()).clamp(min=1e-9).sqrt()
        places = torch.where(rows > 0, places, 0.0)
        middles = kmeans_of_batch(places, CLASSES, 20)
    assert middles is not None
    return torch.cdist(places, middles).argmin(1)


def _shares(counts: Tensor, base: Tensor, blend: float) -> Tensor:
    """float64 [C + 1, V]: conditional probabilities, drawn to the plain ones where counts are few."""
    return (counts + blend * base) / (counts.sum(1, keepdim=True) + blend)


def _at(classes: Tensor, codes: Tensor) -> Tensor:
    """Rows of weights: the class of each code, one row more for -1."""
    return torch.cat([classes, classes.max()[None] + 1])[codes]


def _weights(shares: Tensor) -> Tensor:
    """int32 [C + 1, V] of at most 15 bits, so that a file holds them in two bytes."""
    return (shares / shares.amax(1, keepdim=True) * _WEIGHT).round().clamp(min=1).to(torch.int32)
