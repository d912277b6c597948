"""The transformer over blocks: what it sees, streams, and outputs that are not asked for."""

from __future__ import annotations

import pytest
import torch

from mmtok.nn import block_attention
from mmtok.nn.block_attention import BlockTransformer
from mmtok.nn.stream import Stream

KINDS = {
    "plain": {}, "memory only": {"memory_sees_local": False}, "own": {"own_visible": True}, "window": {"window": 2},
    "gated": {"gated": True, "rope_base": 10000.0}, "bias": {"bias": True},
}  # fmt: skip


def network(**options):
    torch.manual_seed(0)
    return BlockTransformer(16, 3, 2, 32, **options).eval()


@pytest.fixture
def x():
    return torch.randn(2, 4, 6, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def keep():
    return torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drops", [False, True])
@torch.no_grad()
def test_only_what_is_wanted_is_the_same(x, keep, kind, drops, monkeypatch):
    model, kept = network(**KINDS[kind]), keep if drops else None
    whole = model(x, 4, kept)
    for wanted in (1, 2, 6):
        torch.testing.assert_close(model(x, 4, kept, wanted=wanted), whole[:, :, 6 - wanted :], atol=1e-5, rtol=0)
    monkeypatch.setattr(block_attention, "TOKENS", 8)  # block by block
    torch.testing.assert_close(model(x, 4, kept, wanted=2), whole[:, :, 4:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_last_layer_computes_no_more_than_is_wanted(x):
    model, rows = network(), []
    for layer in model.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[1]))
    model(x, 4, wanted=2)
    assert rows == [24, 24, 8]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drops", [False, True])
@torch.no_grad()
def test_a_stream_gives_the_whole_and_later_blocks_change_nothing(x, keep, kind, drops):
    model, kept = network(**KINDS[kind]), keep if drops else None
    whole = model(x, 4, kept, wanted=3)
    for sizes in ((1, 1, 1, 1), (1, 3), (2, 2)):
        stream, at, parts = Stream(), 0, []
        for size in sizes:
            part = None if kept is None else kept[:, at : at + size]
            parts.append(model(x[:, at : at + size], 4, part, stream, 3))
            at += size
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)
    other = x.clone()
    other[:, 2:] = 7
    torch.testing.assert_close(model(other, 4, kept)[:, :2], model(x, 4, kept)[:, :2], atol=1e-5, rtol=0)


@torch.no_grad()
def test_of_earlier_blocks_only_kept_memory_is_seen(x, keep):
    model = network()
    before = model(x, 4, keep)
    other = x.clone()
    other[:, 0, 4:] = 7  # local tokens of the first block
    model.memory_sees_local = False
    hidden = model(x, 4, keep)
    assert not torch.allclose(hidden, before, atol=1e-3)
    torch.testing.assert_close(model(other, 4, keep)[:, 1:], hidden[:, 1:], atol=1e-5, rtol=0)
    other = torch.where(torch.nn.functional.pad(keep, (0, 2), value=True)[..., None], x, torch.full_like(x, 7.0))
    seen = model(other, 4, keep)[:, :, 4:]
    torch.testing.assert_close(seen, hidden[:, :, 4:], atol=1e-5, rtol=0)
