"""UTMOS22 strong against golden numbers of two independent implementations, in the three published layouts."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtok.metrics.audio import utmos
from mmtok.metrics.audio.utmos import UTMOS, UTMOS22Strong, baked, find_weights
from mmtok.nn.wav2vec2 import Wav2Vec2

ROOTS = [Path(__file__).parents[2] / "golden"] + [Path(p) for p in [os.environ.get("MMTOK_GOLDEN")] if p]
FOLDERS = [root / "audio" / "utmos22" for root in ROOTS]
HEADS = {folder: json.loads((folder / "config.json").read_text())["heads"] for folder in FOLDERS}


def layouts(folder=FOLDERS[0]):
    """State dicts as the three files hold them."""
    training, released = (load_file(folder / f"{name}.safetensors") for name in ("weights", "weights_baked"))
    return {"training": training, "lightning": {"state_dict": training, "epoch": 3}, "baked": released}


@pytest.mark.parametrize("layout", ["training", "lightning", "baked"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parents[1].name)
def test_every_layout_gives_the_golden_scores(folder, layout):
    model, io = UTMOS22Strong.from_state(layouts(folder)[layout], HEADS[folder]), load_file(folder / "io.safetensors")
    wave = io["wave"][:, 0]
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(model.wav2vec2.feature_extractor(wave[:, None]), io["conv_features"], **close)
    features = model.wav2vec2(wave)
    torch.testing.assert_close(features, io["ssl_features"], **close)
    torch.testing.assert_close(model.frame_scores(features), io["frame_scores"], **close)
    torch.testing.assert_close(model(wave), io["score"], **close)
    for name in (name for name in io if name.startswith("length")):
        length = int(name.removeprefix("length").removesuffix(".score"))
        torch.testing.assert_close(model(wave[:1, :length]), io[name], **close)


def test_padding_would_change_the_score():
    model = UTMOS22Strong.from_state(layouts()["baked"], HEADS[FOLDERS[0]])
    wave = load_file(FOLDERS[0] / "io.safetensors")["wave"][:1, 0, :3500]
    padded = torch.nn.functional.pad(wave, (0, 3000))
    assert float((model(padded) - model(wave)).abs()) > 1e-3  # why utterances are scored one at a time


def test_the_published_sizes_are_the_defaults():
    with torch.device("meta"):
        model = UTMOS22Strong(Wav2Vec2())
    values = sum(math.prod(p.shape) for p in model.parameters())
    # 103.16 M in the release: with the table of judges and domains, the norm's gain, and the unused mask embedding
    assert values + (3000 + 3 - 2) * 128 + 128 + 768 == pytest.approx(103.16e6, abs=0.5e4)
    assert model.wav2vec2.shortest == 400


def test_weights_are_found_by_path_variable_and_caches_or_named_in_the_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MMTOK_WEIGHTS_DIR", str(tmp_path / "weights"))
    with pytest.raises(ValueError, match="utmos22_strong_step7459_v1.pt.*MMTOK_WEIGHTS_DIR"):
        UTMOS()
    with pytest.raises(ValueError, match="does not exist"):
        UTMOS(tmp_path / "absent.pt")
    names = [file.name for file in utmos.FILES]
    places = [
        tmp_path / "hf" / "hub" / "models--Blinorot--UTMOS-PyTorch" / "snapshots" / "abc" / names[1],
        tmp_path / "torch" / "hub" / "checkpoints" / names[0], tmp_path / "weights" / names[0],
    ]
    for place in places:  # each is found before the ones above it
        place.parent.mkdir(parents=True)
        torch.save(layouts()["training"], place)
        assert find_weights() == place
    assert find_weights(places[0]) == find_weights(places[0].parent) == places[0]
    with pytest.raises(ValueError, match="network of other sizes"):
        UTMOS(places[0])  # the golden network is no UTMOS, whatever its file is called


def test_other_weights_are_refused(tmp_path):
    state = layouts()["baked"]
    with pytest.raises(ValueError, match="not weights of UTMOS22 strong: wav2vec2.feature"):
        UTMOS22Strong.from_state({"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="missing .*blstm"):
        UTMOS22Strong.from_state({k: v for k, v in state.items() if not k.startswith("blstm")}, heads=2)
    with pytest.raises(ValueError, match="not known .*extra"):
        UTMOS22Strong.from_state({**state, "extra": torch.zeros(1)}, heads=2)
    save_file(state, tmp_path / "w.safetensors")
    assert set(baked(load_file(tmp_path / "w.safetensors"))) == set(baked(layouts()["training"]))
