"""Audio checkpoints in the containers they are published in: no config, nested, two networks in one file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtok import hub, importers

GOLDEN = Path(__file__).parents[1] / "golden/audio"


def weights(name):
    return load_file(GOLDEN / name / "weights.safetensors")


def save(content, path):
    torch.save(content, path)
    return path


def test_encodec_without_a_config_is_the_released_24_khz_model(tmp_path):
    codec = importers.load("encodec", save(weights("encodec"), tmp_path / "encodec_24khz.th"))
    assert codec.sample_rate == 24000 and codec.causal and codec.tail.choices == [2, 4]
    stereo = importers.load("encodec", save(weights("encodec_48k"), tmp_path / "encodec_48khz.th"))
    assert stereo.sample_rate == 48000 and stereo.segment == 48000 and not stereo.skip_short


def test_mimi_without_a_config_has_eight_heads(tmp_path):
    codec = importers.load("mimi", save(weights("mimi_moshi"), tmp_path / "tokenizer.bin"))
    layer = codec.encoder.transformer.layers[0]
    assert (layer.heads, layer.window, codec.sample_rate, codec.end) == (8, 250, 24000, "zeros")


def test_two_networks_in_one_file(tmp_path):
    parts = {"CodecEnc": {}, "generator": {}}
    for key, value in weights("bigcodec").items():
        part, rest = key.split(".", 1)
        parts[part][rest] = value
    codec = importers.load("bigcodec", save(parts, tmp_path / "bigcodec.pt"))
    assert codec.sample_rate == 16000 and codec.quantizer.codebook_sizes == ((32,),)


def test_wavtokenizer_lightning_file(tmp_path):
    codec = importers.load("wavtokenizer", save({"state_dict": weights("wavtokenizer")}, tmp_path / "wt.ckpt"))
    assert codec.sample_rate == 24000 and codec.decoder.head.n_fft == 80


def test_dac_of_unknown_size_asks_for_its_rate(tmp_path):
    content = {"state_dict": weights("dac"), "metadata": {"kwargs": {"encoder_rates": [2, 3, 4]}}}
    file = save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="3 codebooks.*sample_rate"):
        importers.load("dac", file)
    (tmp_path / "config.json").write_text(json.dumps({"sample_rate": 8000}))
    assert importers.load("dac", file).sample_rate == 8000


def test_snac_needs_its_config(tmp_path):
    shutil.copy(GOLDEN / "snac" / "weights.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks sampling_rate"):
        importers.load("snac", tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("name", ["encodec", "encodec_48k", "snac", "mimi", "speechtokenizer"])
def test_imported_codecs_save_and_load_in_our_format(name, tmp_path):
    family = {"encodec_48k": "encodec"}.get(name, name)
    codec = importers.load(family, GOLDEN / name)
    again = hub.load(hub.save(codec, tmp_path / "ours"))
    x = torch.randn(1, codec.channels, codec.hop * 12 + 3) * 0.1
    tokens = codec.encode(x)
    assert all(torch.equal(a, b) for a, b in zip(tokens.grids, again.encode(x).grids, strict=True))
    assert torch.equal(codec.decode(tokens), again.decode(tokens))
