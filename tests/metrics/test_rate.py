"""Bits and usage against arithmetic by hand."""

import math

import pytest
import torch

from mmtok.bitstream import pack
from mmtok.metrics.rate import Rate, entropy_bits, side_bits
from mmtok.metrics.usage import Usage


def test_prices_of_one_item_by_hand(tokens):
    one = tokens(4)[2]
    length = int(one.num_sent) // 2
    metric = Rate()
    size = metric.update(one)
    values = metric.compute()
    assert values["tokens"] == 2 * length
    assert values["bits_side"] == pytest.approx(3)  # one of 8 lengths
    assert values["bits_nominal"] == pytest.approx(3 + 2 * length * math.log2(20))
    table = one.tables.plain[0].double()
    cost = sum(-math.log2(float(table[k, one.codes[0, k, i]]) / (1 << 24)) for k in range(2) for i in range(length))
    assert values["bits_entropy"] == pytest.approx(3 + cost)
    assert values["bytes_file"] == int(size) == len(pack(one))
    assert values["bpp_file"] == pytest.approx(8 * len(pack(one)) / (32 * 48))
    assert values["bpp_entropy"] == pytest.approx((3 + cost) / (32 * 48))


def test_batches_add_up_and_models_without_tables_have_no_entropy_price(tokens):
    batch = tokens(9)
    assert torch.allclose(entropy_bits(batch), torch.cat([entropy_bits(batch[i]) for i in range(9)]))
    assert torch.equal(side_bits(batch), torch.full((9,), 3.0, dtype=torch.float64))
    metric = Rate()
    bare = tokens(9)
    object.__setattr__(bare, "tables", None)
    metric.update(bare)
    assert "bits_entropy" not in metric.compute() and "bits_nominal" in metric.compute()
    with pytest.raises(ValueError, match="no code tables"):
        entropy_bits(bare)


def test_usage_counts_sent_codes_only(tokens):
    batch = tokens(50)
    metric = Usage.like(batch, by_position=True)
    metric.update(batch)
    for k, book in enumerate(metric.codebooks()):
        mask = batch.keep[0][:, 0]
        sent = batch.codes[:, k][mask]
        counts = torch.bincount(sent, minlength=20).double()
        p = counts[counts > 0] / counts.sum()
        entropy = float(-(p * p.log2()).sum())
        assert book.codes == sent.numel() and book.size == 20
        assert book.usage == pytest.approx(len(sent.unique()) / 20)
        assert (book.entropy_bits, book.perplexity) == pytest.approx((entropy, 2**entropy))
        last = batch.codes[:, k, 7][mask[:, 7]]
        assert book.position_usage[7] == pytest.approx(len(last.unique()) / 20)
        assert book.usage_uniform == pytest.approx(1 - (19 / 20) ** sent.numel())
    with pytest.raises(ValueError, match="shapes changed"):
        metric.update(type(batch)((batch.codes[..., :4],), (batch.keep[0][..., :4],), batch.codebook_sizes, batch.size))


def test_large_tables_are_binned_by_position(tokens, monkeypatch):
    from mmtok.metrics import usage

    batch = tokens(20)
    monkeypatch.setattr(usage, "MAX_CELLS", 3 * 40)  # room for 3 of 8 positions
    metric = Usage.like(batch, by_position=True)
    metric.update(batch)
    (book, _) = metric.codebooks()
    assert book.bin_size == 3 and len(book.position_usage) == 3
    plain = Usage.like(batch)
    plain.update(batch)
    assert plain.codebooks()[0].entropy_bits == pytest.approx(book.entropy_bits)
    assert plain.codebooks()[0].position_usage == ()
