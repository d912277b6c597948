"""Vocos on EnCodec's codes against the reference: the golden decoder on an EnCodec of random weights."""

import dataclasses
import json

import layouts_audio as audio
import pytest
import torch
from golden_sets import ROOTS
from layouts import under
from safetensors.torch import load_file

from mmtok import importers
from mmtok.catalogue import published
from mmtok.importers import encodec as original
from mmtok.importers import vocos
from mmtok.published import convert
from mmtok.types import Batch

FOLDERS = [root / "audio" / "vocos_encodec" for root in ROOTS]
NAMES = [folder.parents[1].name for folder in FOLDERS]
PREFIX = "feature_extractor.encodec."
BESIDE = "encodec_24khz-d7cc33bc.th"


def golden(folder):
    return json.loads((folder / "config.json").read_text()), load_file(folder / "weights.safetensors")


def encodec(config, state):
    """Random weights of the EnCodec whose codebooks the golden table holds, and two finer ones."""
    torch.manual_seed(0)
    net = audio.SEANet((config["hop_length"] // 10, 5, 2), 2, config["dimension"])
    count, codes = config["num_codebooks"], config["codebook_size"]
    shapes = audio.encodec(net, count + 2, codes)
    found = {key: torch.randn(shape) / max(1, shape[-1]) ** 0.5 for key, shape in shapes.items()}
    tables = state[vocos.TABLE].split(codes)
    for i in range(count):
        found[f"quantizer.vq.layers.{i}._codebook.embed"] = tables[i]
    return found


def whole(folder):
    """(golden config, tokenizer, io, Converted)."""
    config, state = golden(folder)
    state |= under(PREFIX, encodec(config, state))
    converted = vocos.convert(state, vocos.facts({}, state))
    assert set(converted.source.values()) | set(converted.dropped) == set(state)
    tokenizer = importers.instantiate(converted, "vocos")
    own = set(converted.state) - set(converted.source)
    assert own and all(key.endswith(".usage") for key in own)
    return config, tokenizer, load_file(folder / "io.safetensors"), converted


@pytest.fixture(params=FOLDERS, ids=NAMES)
def model(request):
    return whole(request.param)


def sent(tokenizer, codes):
    """Tokens of given codes [B, K, F], cut to their depth."""
    batch, depth, frames = codes.shape
    tokens = tokenizer.encode(torch.zeros(batch, 1, frames * tokenizer.hop), num_quantizers=depth)
    grid = tokens.grids[0].clone()
    grid[:, :depth] = codes
    return dataclasses.replace(tokens, grids=(grid,))


def raw(tokenizer, tokens):
    return tokenizer.reconstruct(tokenizer.embed(tokens), tokens)[:, 0]


@torch.no_grad()
def test_every_bandwidth_from_codes_alone(model):
    config, tokenizer, io, _ = model
    depths = config["num_codebooks_per_bandwidth"]
    assert tokenizer.rows.tolist() == depths and tokenizer.tail.choices == depths
    for row, depth in enumerate(depths):
        tokens = sent(tokenizer, io[f"bandwidth{row}.codes"])
        assert tokens.codes.shape[1] == config["num_codebooks"] and int(tokens.keep[0].sum(1).max()) == depth
        if f"bandwidth{row}.features" in io:
            torch.testing.assert_close(tokenizer.embed(tokens), io[f"bandwidth{row}.features"], atol=1e-6, rtol=0)
        torch.testing.assert_close(raw(tokenizer, tokens), io[f"bandwidth{row}.decoded"], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_codes_are_those_of_the_encodec_inside(folder):
    config, tokenizer, _, _ = whole(folder)
    alone = encodec(*golden(folder))
    codec = importers.instantiate(original.convert(alone, original.facts({}, alone)), "encodec")
    x = torch.randn(2, 1, 7 * tokenizer.hop + 3)
    assert torch.equal(tokenizer.encode(x).codes, codec.encode(x).codes[:, : config["num_codebooks"]])


@torch.no_grad()
def test_every_item_has_the_row_of_its_own_depth(model):
    """Two items of one batch at different depths; a depth in between takes the next row."""
    _, tokenizer, io, _ = model
    both = sent(tokenizer, io["bandwidth3.codes"])
    depth = torch.arange(both.codes.shape[1])[:, None]
    keep = torch.stack([depth < 2, depth < 8])
    mixed = dataclasses.replace(both, grids=(both.codes.masked_fill(~keep, 0),), keep=(keep,))
    out = raw(tokenizer, mixed)
    torch.testing.assert_close(out[0], raw(tokenizer, sent(tokenizer, both.codes[:1, :2]))[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[1], io["bandwidth3.decoded"][1], atol=1e-4, rtol=0)
    third = sent(tokenizer, both.codes[:, :3])
    expected = tokenizer.decoder(tokenizer.embed(third), row=2)[:, 0]
    assert torch.equal(raw(tokenizer, third), expected)
    assert not torch.allclose(tokenizer.decoder(tokenizer.embed(third), row=1)[:, 0], expected, atol=1e-4)


def test_training_reaches_the_row_that_is_drawn(model):
    """Depth drop draws a bandwidth a batch; its row of the norms alone gets a gradient, and the frozen parts none."""
    _, tokenizer, _, _ = model
    for part in (tokenizer.encoder, tokenizer.quantizer):
        part.requires_grad_(False)
    tokenizer.train()
    torch.manual_seed(0)
    x, met = torch.randn(2, 1, 10 * tokenizer.hop), set()
    for _ in range(12):
        tokenizer.zero_grad()
        out = tokenizer(Batch.of(x))
        out.x.square().mean().backward()
        rows = tokenizer.decoder.norm.scale.grad.abs().sum(1).nonzero()[:, 0].tolist()
        depth = int(out.tokens.keep[0][0].sum())
        assert [tokenizer.rows.tolist()[row] for row in rows] == [depth]
        met |= set(rows)
    assert len(met) > 2 and all(p.grad is None for p in tokenizer.encoder.parameters())


@torch.no_grad()
def test_two_files_as_they_are_published(tmp_path):
    config, state = golden(FOLDERS[0])
    expected = whole(FOLDERS[0])[1]
    (tmp_path / "hub").mkdir()
    torch.save(state, tmp_path / "hub" / "pytorch_model.bin")
    torch.save(encodec(config, state), tmp_path / BESIDE)
    with pytest.raises(ValueError, match=f"^importer vocos: the file holds no {PREFIX}.*put EnCodec's {BESIDE}"):
        importers.load("vocos", tmp_path / "hub")
    # downloaded to two places
    files = {"pytorch_model.bin": tmp_path / "hub" / "pytorch_model.bin", BESIDE: tmp_path / BESIDE}
    tokenizer = importers.instantiate(convert(published()["vocos-encodec-24khz"], files), "vocos")
    x = torch.randn(1, 1, 1000)
    assert torch.equal(tokenizer.encode(x).codes, expected.encode(x).codes)
    # or put into one folder by hand
    (tmp_path / BESIDE).rename(tmp_path / "hub" / BESIDE)
    tokenizer = importers.load("vocos", tmp_path / "hub")
    assert torch.equal(tokenizer.decode(tokenizer.encode(x)), expected.decode(expected.encode(x)))


def test_files_that_do_not_belong_together():
    config, state = golden(FOLDERS[0])
    mel = load_file(FOLDERS[0].with_name("vocos_mel") / "weights.safetensors")
    with pytest.raises(ValueError, match="vocos-mel-24khz makes no codes"):
        vocos.facts({}, mel)
    other = state | under(PREFIX, encodec(config, state))
    name = f"{PREFIX}quantizer.vq.layers.1._codebook.embed"
    other[name] = other[name] + 1
    with pytest.raises(ValueError, match="codebook_weights is not .*another one"):
        vocos.convert(other, vocos.facts({}, other))
