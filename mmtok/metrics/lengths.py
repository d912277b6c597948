"""Lengths of variable-length tokens: which exist, and how to cut one encoding to all of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmtok.keep import Prefix
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Tokens


def length_choices(tokenizer: Tokenizer, size: tuple[int, ...]) -> list[int]:
    """Powers of two from the shortest length on, and the full length; empty for models of a fixed length."""
    sizes = tokenizer.coding.sizes(tokenizer.grid_shapes(size))
    if tokenizer.tail is None or not sizes:
        return []
    low, high = min(tokenizer.tail.min_length, max(sizes)), max(sizes)
    return sorted({low, high} | {1 << n for n in range(high.bit_length()) if low <= 1 << n <= high})


def encode_at(tokenizer: Tokenizer, batch: Batch, length: int | None) -> Tokens:
    """Tokens by the truncated path, whichever axis the model varies."""
    if length is None:
        return tokenizer.encode(batch)
    if tokenizer.coding == Prefix(1):
        return tokenizer.encode(batch, num_quantizers=length)
    return tokenizer.encode(batch, num_tokens=length)


def shorten(tokens: Tokens, length: int) -> Tokens:
    """The tokens cut to `length` (of every block) through their keep coding: what `encode(num_tokens=length)` gives
    when codes do not depend on the length. ValueError when the length is longer than what was sent."""
    symbols = tokens.coding.symbols(tokens.keep, tokens.shapes)
    sizes = tokens.coding.sizes(tokens.shapes)
    if not 1 <= length <= max(sizes, default=0):
        raise ValueError(f"shorten: these tokens have lengths 1 to {max(sizes, default=0)}, got {length}")
    wanted = torch.tensor([min(size, length) - 1 for size in sizes], device=symbols.device).expand_as(symbols)
    if bool((wanted > symbols).any()):
        raise ValueError(f"shorten: length {length} is longer than what was sent")
    keep = tokens.coding.masks(wanted, tokens.shapes)
    grids = tuple(grid.masked_fill(~mask, 0) for grid, mask in zip(tokens.grids, keep, strict=True))
    return replace(tokens, grids=grids, keep=keep)


def same_tokens(a: Tokens, b: Tokens) -> bool:
    """Whether two sets of tokens hold the same sent codes."""
    pairs = zip(a.grids, b.grids, a.keep, b.keep, strict=True)
    return all(torch.equal(x, y) and torch.equal(m.expand_as(x), n.expand_as(y)) for x, y, m, n in pairs)
