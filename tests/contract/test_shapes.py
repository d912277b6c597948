"""Ten toy tokenizers go the whole way: train, save, load, bits, file, batch, stream."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmtok import Batch, Tokenizer, Tokens, load, load_tokens, save_tokens
from mmtok.hub import build, save

IMAGE, AUDIO, VIDEO = (3, 16, 16), (1, 64), (3, 8, 8, 8)
CASES = {
    "PrefixOneD": (3, 8, 8), "BitmapHalting": IMAGE, "ThreeScales": IMAGE, "CausalAudio": AUDIO,
    "ResidualDepth": AUDIO, "BlockVideo": VIDEO, "SideScalar": AUDIO, "TextCondition": IMAGE, "TwoPass": IMAGE,
    "StochasticDecoder": IMAGE,
}
TRUST = ("mmtok", "toys")


def make(name: str) -> Tokenizer:
    torch.manual_seed(0)
    return build({"class_path": f"toys.{name}", "init_args": {}}, TRUST)


def media(name: str, batch: int = 3) -> Batch:
    x = torch.rand(batch, *CASES[name], generator=torch.Generator().manual_seed(1)) * 2 - 1
    out = Batch.of(x)
    if name == "TextCondition":
        out = replace(out, text=("a cat", "", "two dogs")[:batch])
    if len(CASES[name]) != 3:
        out = replace(out, rate=torch.full((batch,), 16.0, dtype=torch.float64))
    return out


@pytest.mark.parametrize("name", CASES)
def test_training_moves_encoder_and_decoder(name: str) -> None:
    model = make(name).train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = media(name)
    out = model(batch, progress=0.5)
    assert out.x.shape == batch.x.shape
    loss = (out.x - batch.x).square().mean() + sum(out.losses.values())
    loss.backward()
    optimizer.step()
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert any(key.startswith("encoder") for key in moved) and any(key.startswith("decoder") for key in moved)


@pytest.mark.parametrize("name", CASES)
def test_save_load_gives_the_same_codes(name: str, tmp_path) -> None:
    model = make(name).eval()
    save(model, tmp_path / "model")
    again = load(tmp_path / "model", modules=TRUST)
    first, second = model.encode(media(name)), again.encode(media(name))
    assert all(torch.equal(a, b) for a, b in zip(first.grids, second.grids, strict=True))
    assert torch.equal(model.decode(first), again.decode(second))


@pytest.mark.parametrize("name", CASES)
def test_file_holds_every_sent_code_and_its_bits(name: str, tmp_path) -> None:
    model = make(name).eval()
    save(model, tmp_path / "model")
    tokens = model.encode(media(name))
    for index in range(len(tokens)):
        item = tokens[index]
        size = save_tokens(tmp_path / "item.mmt", item)
        again = load_tokens(tmp_path / "item.mmt", model)
        assert all(torch.equal(a, b) for a, b in zip(item.grids, again.grids, strict=True))
        for a, b, grid in zip(item.keep, again.keep, item.grids, strict=True):
            assert torch.equal(a.expand_as(grid), b.expand_as(grid))
        assert torch.equal(model.decode(item), model.decode(again))
        header = 12 + 2 * item.size.shape[1] + 4
        assert math.ceil(float(item.bits[0]) / 8) - 1 <= size <= math.ceil(float(item.bits[0]) / 8) + header + 1


@pytest.mark.parametrize("name", CASES)
def test_decode_of_encode_equals_forward(name: str) -> None:
    model = make(name).eval()
    batch = media(name)
    torch.testing.assert_close(model.decode(model.encode(batch)), model(batch).x.clamp(-1, 1))


@pytest.mark.parametrize("name", CASES)
def test_batched_equals_single(name: str) -> None:
    model = make(name).eval()
    batch = media(name)
    together = model.encode(batch)
    recon = model.decode(together)
    for i in range(3):
        one = Batch(batch.x[i : i + 1], batch.keys[i : i + 1], batch.size[i : i + 1],
                    None if batch.rate is None else batch.rate[i : i + 1],
                    text=None if batch.text is None else batch.text[i : i + 1])
        alone = model.encode(one)
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone.grids, together.grids, strict=True))
        torch.testing.assert_close(model.decode(alone), recon[i : i + 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_flat_and_back(name: str) -> None:
    tokens = make(name).eval().encode(media(name))
    flat = tokens.flat()
    assert int(flat.max()) < sum(sum(sizes) for sizes in tokens.codebook_sizes)
    assert torch.equal((flat >= 0).sum(1), tokens.num_sent)
    again = Tokens.from_flat(flat, tokens)
    assert all(torch.equal(a, b) for a, b in zip(tokens.grids, again.grids, strict=True))


@pytest.mark.parametrize(("name", "lengths"), [
    ("PrefixOneD", range(1, 9)), ("ThreeScales", (1, 2, 3)), ("BlockVideo", (1, 3, 6)),
])
def test_a_shorter_prefix_is_the_head_of_a_longer_one(name: str, lengths) -> None:
    model = make(name).eval()
    batch = media(name)
    full, sent = model.encode(batch), []
    for length in lengths:
        tokens = model.encode(batch, num_tokens=length)
        for grid, mask, whole in zip(tokens.grids, tokens.keep, full.grids, strict=True):
            assert torch.equal(grid, whole * mask)
        assert torch.isfinite(model.decode(tokens)).all()
        sent.append(float(tokens.bits[0]))
    assert sent == sorted(set(sent))


def test_depth_is_chosen_by_num_quantizers() -> None:
    model = make("ResidualDepth").eval()
    batch = media("ResidualDepth")
    bits = [float(model.encode(batch, num_quantizers=q).bits[0]) for q in (1, 2, 4)]
    assert bits == pytest.approx([16 * q * math.log2(125) + 2 for q in (1, 2, 4)])
    with pytest.raises(ValueError, match="num_quantizers"):
        model.encode(batch, num_tokens=3)
    with pytest.raises(ValueError, match="fixed"):
        make("TwoPass").eval().encode(media("TwoPass"), num_tokens=3)


@pytest.mark.parametrize(("name", "chunk"), [("CausalAudio", 16), ("BlockVideo", 2)])
def test_streaming_equals_whole(name: str, chunk: int) -> None:
    model = make(name).eval()
    batch = media(name)
    whole = model.decode(model.encode(batch) if name == "CausalAudio" else model.encode(batch, num_tokens=4))
    state, parts = model.stream_state(3), []
    for piece in batch.x.split(chunk, 2):
        tokens, state = model.encode_chunk(piece, state)
        out, state = model.decode_chunk(tokens, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    with pytest.raises(ValueError, match="not causal"):
        make("TwoPass").stream_state()


def test_stochastic_decoder_depends_on_seed_alone() -> None:
    model = make("StochasticDecoder").eval()
    tokens = model.encode(media("StochasticDecoder"))
    assert torch.equal(model.decode(tokens, seed=3), model.decode(tokens, seed=3))
    assert not torch.equal(model.decode(tokens, seed=3), model.decode(tokens, seed=4))


def test_captions_and_bitmaps_are_paid_for() -> None:
    tokens = make("TextCondition").eval().encode(media("TextCondition"))
    assert (tokens.bits - tokens.bits[1]).tolist() == [8 * 5, 0, 8 * 8]
    tokens = make("BitmapHalting").eval().encode(media("BitmapHalting"))
    assert tokens.bits.tolist() == [16 + 5 * int(n) for n in tokens.num_sent]
