"""Entropy-coding tables: how often each code occurs in training data, stored with the weights.

Legend: B batch, K codebooks of a grid, V codes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mmtok.coder import fit_table
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch


@torch.no_grad()
def fit_tables(tokenizer: Tokenizer, batches: Iterable[Batch]) -> int:
    """Gives the tokenizer one int32 table [K_i, V] per grid, from the codes of these batches; returns their number.

    Fit on training data only: a table that has seen the test set hides bits it does not pay for. The tokenizer is left
    in the mode it was in.
    """
    device = next(tokenizer.parameters()).device
    counts = [torch.zeros(len(sizes), max(sizes), dtype=torch.int64) for sizes in tokenizer.quantizer.codebook_sizes]
    was_training, codes_seen = tokenizer.training, 0
    tokenizer.eval()
    for batch in batches:
        tokens = tokenizer.encode(batch.to(device))
        for index, (grid, mask) in enumerate(zip(tokens.grids, tokens.keep, strict=True)):
            for k in range(grid.shape[1]):
                sent = grid[:, k][mask.expand_as(grid)[:, k]].cpu()
                counts[index][k] += torch.bincount(sent, minlength=counts[index].shape[1])
                codes_seen += len(sent)
    tokenizer.train(was_training)
    if codes_seen:
        tokenizer.tables = tuple(_tables(count, sizes) for count, sizes in
                                 zip(counts, tokenizer.quantizer.codebook_sizes, strict=True))
    return codes_seen


def _tables(counts: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """int32 [K, V]; columns past a codebook's own size are 0 and never read."""
    out = torch.zeros(counts.shape, dtype=torch.int32)
    for k, size in enumerate(sizes):
        out[k, :size] = fit_table(counts[k, :size])
    return out
