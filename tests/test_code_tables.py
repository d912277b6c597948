"""Conditional tables: smaller files where codes follow from earlier ones, the same codes back, and closed to damage."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmtok.bitstream import pack, unpack
from mmtok.code_tables import CodeTables, Context, earlier
from mmtok.keep import BlockDepth, Full, Prefix, full_keep
from mmtok.metrics.rate import entropy_bits, side_bits
from mmtok.tables import fit_tables
from mmtok.types import Batch, Tokens

V, FULL = 12, Full()


class Given:
    """A tokenizer whose media are its codes: [B, K, H, W] in, the same grid out."""

    def __init__(self, sizes: tuple[int, ...] = (V, V), coding=FULL) -> None:
        self.quantizer = type("Books", (), {"codebook_sizes": (sizes,)})()
        self.sizes, self.coding, self.tokenizer_id, self.tables, self.training = sizes, coding, "", None, False
        self.stride = (1, 1)

    def parameters(self):
        return iter([torch.zeros(1)])

    def train(self, mode: bool = True):
        self.training = mode

    def eval(self):
        self.training = False

    def encode(self, batch: Batch, keep=None) -> Tokens:
        grid = batch.x.long()
        keep = full_keep((tuple(grid.shape[1:]),), len(grid)) if keep is None else keep
        size = torch.tensor([grid.shape[2:]]).expand(len(grid), 2)
        return Tokens((grid,), keep, (self.sizes,), size, coding=self.coding, tables=self.tables)

    def media_size(self, size, rate):
        return size

    def grid_shapes(self, size):
        return ((len(self.sizes), *size),)

    def side_shapes(self, size):
        return {}


def walk(seed: int, batch: int = 16, height: int = 6, width: int = 7) -> Batch:
    """Codebook 0 moves by a step along the last axis; codebook 1 follows codebook 0 of the same position."""
    g = torch.Generator().manual_seed(seed)
    steps = torch.randint(-1, 2, (batch, height, width), generator=g)
    steps[..., 0] = torch.randint(0, V, (batch, height), generator=g)
    first = steps.cumsum(-1) % V
    second = (first + torch.randint(0, 2, first.shape, generator=g)) % V
    return Batch.of(torch.stack([first, second], 1).float())


@pytest.fixture(scope="module")
def fitted() -> Given:
    tokenizer = Given()
    assert fit_tables(tokenizer, [walk(seed) for seed in range(20)]) == 20 * 16 * 2 * 42
    return tokenizer


def test_the_context_that_says_most_is_found(fitted) -> None:
    first, second = (fitted.tables.of(0, k) for k in range(2))
    assert (first.source, first.axis) == (0, 1)  # itself, one to the left
    assert (second.source, second.axis) == (0, None)  # the first codebook, here


def test_files_shrink_to_the_conditional_entropy_and_hold_the_same_codes(fitted) -> None:
    tokens = fitted.encode(walk(99))
    plain = replace(tokens, tables=CodeTables(fitted.tables.plain))
    sizes = [len(pack(tokens[i])) for i in range(len(tokens))]
    assert sum(sizes) < 0.6 * sum(len(pack(plain[i])) for i in range(len(tokens)))
    ideal = entropy_bits(tokens) + side_bits(tokens)
    # a start of log2 12 a row, then log2 3 a step and 1 bit for the follower, and what fitted counts miss
    truth = 6 * (torch.tensor(12.0).log2() + 6 * torch.tensor(3.0).log2() + 7)
    assert truth < ideal.mean() < 1.03 * truth
    for i in range(len(tokens)):
        assert abs(sizes[i] - 14 - float(ideal[i]) / 8) < 2
        assert torch.equal(unpack(pack(tokens[i]), fitted).codes, tokens[i].codes)


def test_unrelated_codes_have_no_context() -> None:
    tokenizer = Given()
    g = torch.Generator().manual_seed(0)
    fit_tables(tokenizer, [Batch.of(torch.randint(0, V, (16, 2, 6, 7), generator=g).float()) for _ in range(20)])
    assert tokenizer.tables.contexts == ()


@pytest.mark.parametrize("depth", [1, 2])
def test_codes_that_were_not_sent_are_no_context(fitted, depth) -> None:
    tokenizer = Given(coding=Prefix(1))
    g = torch.Generator().manual_seed(1)
    weights = torch.randint(1, 50, (V + 1, V), generator=g, dtype=torch.int32)
    looks_ahead = Context(0, 0, 1, 1, torch.arange(V), weights)  # at the deeper codebook of the position before
    tokenizer.tables = CodeTables(fitted.tables.plain, (looks_ahead,))
    keep = tokenizer.coding.masks(torch.tensor([[depth - 1]]), ((2, 6, 7),))
    tokens = tokenizer.encode(walk(3, 1), keep)
    tokens = replace(tokens, grids=(tokens.codes * keep[0],))
    found = looks_ahead.rows(tokens.codes, keep[0].expand_as(tokens.codes))
    assert bool((found[..., 0] == V).all()) and bool((found[..., 1:] == V).all()) == (depth == 1)
    assert torch.equal(unpack(pack(tokens), tokenizer).codes, tokens.codes)


def test_each_position_may_send_its_own_depth(fitted) -> None:
    tokenizer = Given(coding=BlockDepth())
    tokenizer.tables = fitted.tables
    shapes = ((2, 6, 7),)
    symbols = torch.randint(0, 2, (1, len(tokenizer.coding.sizes(shapes))), generator=torch.Generator().manual_seed(0))
    keep = tokenizer.coding.masks(symbols, shapes)
    tokens = tokenizer.encode(walk(5, 1), keep)
    tokens = replace(tokens, grids=(tokens.codes * keep[0],))
    back = unpack(pack(tokens), tokenizer)
    assert torch.equal(back.codes, tokens.codes) and torch.equal(back.keep[0], keep[0])


def test_earlier_looks_one_back_along_its_axis() -> None:
    grid = torch.arange(12).view(1, 1, 3, 4)
    keep = torch.ones_like(grid, dtype=torch.bool)
    keep[0, 0, 1, 1] = False
    assert earlier(grid, keep, 0, 1)[0].tolist() == [[-1, 0, 1, 2], [-1, 4, -1, 6], [-1, 8, 9, 10]]
    assert earlier(grid, keep, 0, 0)[0].tolist() == [[-1] * 4, [0, 1, 2, 3], [4, -1, 6, 7]]
    assert earlier(grid, keep, 0, None)[0, 1].tolist() == [4, -1, 6, 7]


def test_large_alphabets_share_classes() -> None:
    g = torch.Generator().manual_seed(0)
    jump = torch.randperm(200, generator=g)

    def chain(seed: int) -> Batch:
        g = torch.Generator().manual_seed(seed)
        codes = [torch.randint(0, 200, (32,), generator=g)]
        for _ in range(29):  # a code says which fifty the next one is of
            codes.append(jump[codes[-1] // 50 * 50 + torch.randint(0, 50, (32,), generator=g)])
        return Batch.of(torch.stack(codes, -1)[:, None, None].float())

    tokenizer = Given((200,))
    fit_tables(tokenizer, [chain(seed) for seed in range(40)])
    (context,) = tokenizer.tables.contexts
    assert len(context.weights) == 65 and int(context.classes.max()) == 63
    tokens = tokenizer.encode(chain(99))
    assert float(entropy_bits(tokens).mean()) / 30 < 6.2  # log2 50 is 5.64, log2 200 is 7.64
    assert torch.equal(unpack(pack(tokens[0]), tokenizer).codes, tokens[0].codes)


def test_state_round_trips_and_damage_is_named(fitted) -> None:
    state = fitted.tables.state()
    sizes = ((V, V),)
    back = CodeTables.from_state(state, sizes)
    assert all(torch.equal(a, b) for a, b in zip(back.plain, fitted.tables.plain, strict=True))
    for a, b in zip(back.contexts, fitted.tables.contexts, strict=True):
        assert (a.source, a.axis) == (b.source, b.axis) and torch.equal(a.classes, b.classes)
        assert torch.equal(a.weights, b.weights)
    for change in (
        {"tables.context.0.weights": torch.zeros(V + 1, V, dtype=torch.int16)},
        {"tables.context.0.weights": torch.ones(V + 1, V - 1, dtype=torch.int16)},
        {"tables.context.0.classes": torch.full((V,), V, dtype=torch.int16)},
        {"tables.context.0.place": torch.tensor([0, 0, 7, 1], dtype=torch.int32)},
        {"tables.context.0.place": torch.tensor([0, 0, 0, -1], dtype=torch.int32)},
        {"tables.context.0.place": torch.tensor([3, 0, 0, 1], dtype=torch.int32)},
        {"tables.0": torch.ones(2, V - 1, dtype=torch.int32)}, {"tables.0": torch.zeros(2, V, dtype=torch.int32)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="tables"):
            CodeTables.from_state(state | change, sizes)
    with pytest.raises(ValueError, match="missing"):
        CodeTables.from_state({k: v for k, v in state.items() if "classes" not in k}, sizes)
