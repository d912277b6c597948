"""Token files: small, exact, and closed to damage."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok import Batch, load_tokens, save_tokens
from mmtok.bitstream import pack, unpack
from mmtok.code_tables import CodeTables
from mmtok.coder import PackedReader, RangeReader, fit_table, table_bits, write_packed, write_range
from mmtok.hub import build, save


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    model = build({"class_path": "toys.PrefixOneD", "init_args": {"num_tokens": 64}}, ("mmtok", "toys")).eval()
    save(model, tmp_path_factory.mktemp("model"))
    return model


@pytest.fixture
def tokens(model):
    return model.encode(torch.rand(1, 3, 8, 8) * 2 - 1, num_tokens=40)


def test_header_of_one_image_is_at_most_16_bytes(model, tokens) -> None:
    codes_and_length = (40 * math.log2(16) + math.log2(64)) / 8
    for side in (8, 128, 4000):
        item = replace(tokens, size=torch.tensor([[side, side]]))
        assert len(pack(item)) - codes_and_length <= 16 + 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_message_survives_both_writers(data) -> None:
    message = []
    for _ in range(data.draw(st.integers(0, 4))):
        size = data.draw(st.integers(1, 5000))
        symbols = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=30)), dtype=np.int64)
        table = data.draw(st.booleans())
        counts = torch.bincount(torch.from_numpy(symbols), minlength=size)
        message.append((symbols, fit_table(counts).numpy() if table else size))
    for reader in (RangeReader(write_range(message)), PackedReader(write_packed(message))):
        for symbols, alphabet in message:
            assert np.array_equal(reader.read(len(symbols), alphabet), symbols)
        reader.finish()


def test_range_coder_is_within_a_byte_of_the_ideal() -> None:
    rng = np.random.default_rng(0)
    counts = torch.from_numpy(rng.multinomial(50_000, rng.dirichlet(np.full(1024, 0.3))))
    table = fit_table(counts)
    p = (table.double() / table.double().sum()).numpy()
    for n in (1, 10, 100, 1000):
        symbols = rng.choice(1024, n, p=p)
        ideal = float(table_bits(table)[symbols].sum()) / 8
        assert ideal - 1 <= len(write_range([(symbols, table.numpy())])) <= ideal + 1 + 2e-3 * n


def test_packing_is_used_when_it_is_smaller(model, tokens) -> None:
    skewed = tuple(torch.tensor([[1 << 18] + [1] * 15], dtype=torch.int32) for _ in range(1))
    rare = tuple(torch.full_like(g, 9) * m for g, m in zip(tokens.grids, tokens.keep, strict=True))
    item = replace(tokens, grids=rare, tables=CodeTables(skewed))
    assert len(pack(item)) == len(pack(replace(item, tables=None)))
    common = replace(item, grids=tuple(g * 0 for g in rare))
    assert len(pack(common)) < len(pack(item)) - 10


def test_every_changed_or_missing_byte_is_an_error(model, tokens) -> None:
    data = pack(tokens)
    for at in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            with pytest.raises(ValueError):
                unpack(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :], model)
        with pytest.raises(ValueError):
            unpack(data[:at], model)
    with pytest.raises(ValueError):
        unpack(data + b"\0", model)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=60), flags=st.integers(0, 15))
def test_a_forged_body_with_a_right_checksum_is_tokens_or_an_error(model, body, flags) -> None:
    import struct
    import zlib

    head = b"MMT" + bytes([1 << 4 | flags]) + bytes.fromhex(model.tokenizer_id)
    data = head + struct.pack("<I", zlib.crc32(head + body)) + body
    try:
        tokens = unpack(data, model)
    except ValueError:
        return
    tokens.validate()


def test_other_weights_and_large_claims_are_refused(model, tokens, tmp_path) -> None:
    other = build({"class_path": "toys.PrefixOneD", "init_args": {"num_tokens": 64}}, ("mmtok", "toys")).eval()
    save(other, tmp_path / "other")
    save_tokens(tmp_path / "a.mmt", tokens)
    with pytest.raises(ValueError, match="a.mmt: made by weights"):
        load_tokens(tmp_path / "a.mmt", other)
    with pytest.raises(ValueError, match="made by weights"):
        other.decode(tokens)
    huge = build({"class_path": "toys.ThreeScales", "init_args": {}}, ("mmtok", "toys")).eval()
    item = huge.encode(torch.zeros(1, 3, 16, 16))
    claim = replace(item, size=torch.tensor([[1 << 18, 1 << 18]]))
    with pytest.raises(ValueError, match="refused"):
        unpack(pack(claim), huge)


def test_rate_travels_in_the_file(tmp_path) -> None:
    audio = build({"class_path": "toys.ResidualDepth", "init_args": {}}, ("mmtok", "toys")).eval()
    x = Batch(torch.zeros(1, 1, 64), ("a",), torch.tensor([[64]]), torch.tensor([44100.0], dtype=torch.float64))
    again = unpack(pack(audio.encode(x, num_quantizers=2)), audio)
    assert again.rate.tolist() == [44100.0] and again.keep[0].flatten().tolist() == [True, True, False, False]


def test_continuous_bottlenecks_say_that_they_have_no_bits() -> None:
    from mmtok import Tokens

    nothing = Tokens((), (), (), torch.tensor([[8, 8]]))
    with pytest.raises(ValueError, match="continuous"):
        _ = nothing.bits
    with pytest.raises(ValueError, match="continuous"):
        pack(nothing)
