"""The YAML recipes on the meta device: published parameter counts and rates, weights for every loss."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch

import mmtok.configs
import mmtok.discriminators
from mmtok.hub import build
from mmtok.training.config_file import read_config_file

ROOT = Path(mmtok.configs.__file__).parent / "audio"
PUBLISHED = {  # recipe: (million parameters, to this precision, frames a second, kbps)
    "encodec_24k": (14.85, 0.005, 75, 24.0),
    "encodec_48k": (14.85, 0.02, 150, 24.0),
    "dac_44k": (76.62, 0.05, 44100 / 512, 7.752),
    "dac_24k": (74.71, 0.05, 75, 24.0),
    "dac_16k": (74.1, 0.08, 50, 6.0),
    "snac_24k": (19.84, 0.02, 24000 / 512, 0.984),
    "wavtokenizer_75": (80.56 - 8.80, 0.03, 75, 0.9),  # without the decoder that is saved, but never used
    "wavtokenizer_40": (80.9 - 8.80, 0.05, 40, 0.48),
    "bigcodec": (159, 0.6, 80, 1.04),
    "mimi": (79.31 + 0.525, 0.01, 12.5, 4.4),  # and the layer that predicts the teacher's features
    "speechtokenizer": (103.68, 0.005, 50, 4.0),
    # without the codebook (running means) and the positions behind it; with the head that spells
    "glm4_voice": (343.6 - 20.97 - 0.48 + 1.317, 0.05, 12.5, 0.175),
    "xcodec": (160.70 + 0.016, 0.01, 50, 4.0),  # with HuBERT, and gains of weight normalization on top
    "xcodec2": (629.28 + 14.68 + 0.012, 0.01, 50, 0.8),  # with w2v-BERT, and what tells its features from the codes
    "nanocodec_0_6kbps": (61.73 + 0.03, 0.01, 12.5, 0.599),  # gains of weight normalization on top
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_rates(name):
    millions, precision, frames, kbps = PUBLISHED[name]
    config = read_config_file(ROOT / f"{name}.yaml")
    with torch.device("meta"):
        codec = build(config["model"]["tokenizer"])
    count = sum(p.numel() for p in codec.parameters()) / 1e6
    assert abs(count - millions) <= precision, count
    data = config["data"]["init_args"]
    assert codec.sample_rate == data["sample_rate"] and codec.channels == data.get("channels", 1)
    assert codec.spec.kbps == pytest.approx(kbps, abs=1e-3) and codec.sample_rate / codec.hop == frames
    crop = int(data["seconds"] * data["sample_rate"]) // data["hop"] * data["hop"]
    # whole frames of the coarsest grid, so that no crop ends in padding
    assert crop % codec.hop == 0 and codec.positions((crop,))[0] * codec.hop == crop


PERIODS, BANDS = 41_092_165, 1_411_587  # HiFi-GAN's and DAC's: see tests/discriminators/test_audio.py
DISCRIMINATORS = {
    "encodec_24k": [471_685], "mimi": [471_685], "dac_44k": [PERIODS + BANDS], "dac_24k": [PERIODS + BANDS],
    "dac_16k": [PERIODS + BANDS], "snac_24k": [PERIODS + BANDS], "vocos_encodec": [PERIODS, BANDS],
    "wavtokenizer_75": [PERIODS, 599_235, PERIODS + BANDS], "wavtokenizer_40": [PERIODS, 599_235, PERIODS + BANDS],
    "speechtokenizer": [PERIODS + 29_610_627 + 471_685], "nanocodec_0_6kbps": [PERIODS + 471_685],
}


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminators_have_the_published_sizes(name):
    """Folded: gains of weight normalization, one an output channel, are not counted."""

    def networks(config):
        if isinstance(config, dict) and str(config.get("class_path", "")).startswith("mmtok.discriminators."):
            return [config]
        inside = config.values() if isinstance(config, dict) else config if isinstance(config, list) else []
        return [network for part in inside for network in networks(part)]

    def make(config):
        args = dict(config.get("init_args") or {})
        if "networks" in args:
            args["networks"] = [make(part) for part in args["networks"]]
        return getattr(mmtok.discriminators, config["class_path"].rsplit(".", 1)[1])(**args)

    found = []
    for network in networks(read_config_file(ROOT / f"{name}.yaml")["model"]["objective"]):
        with torch.device("meta"):
            parameters = dict(make(network).named_parameters())
        found.append(sum(p.numel() for key, p in parameters.items() if not key.endswith("original0")))
    assert found == DISCRIMINATORS[name]


def test_vocos_changes_nothing_but_the_decoder():
    ours, theirs = (read_config_file(ROOT / f"{name}.yaml") for name in ("vocos_encodec", "encodec_24k"))
    args = [config["model"]["tokenizer"]["init_args"] for config in (ours, theirs)]
    assert all(args[0][part] == args[1][part] for part in ("encoder", "sample_rate", "end"))
    depths, every = (arg["quantizer"]["init_args"].pop("quantizers") for arg in args)
    assert args[0]["quantizer"] == args[1]["quantizer"] and depths == every[: args[0]["depths"][-1]]
    # the codebooks beyond are the ones that the start from EnCodec's weights may leave out
    left_out = [f"quantizer.depths.{i}.codebook" for i in range(32)]
    left_out = [key for key in left_out if any(fnmatchcase(key, p) for p in ours["model"]["init_ignore"])]
    assert left_out == [f"quantizer.depths.{i}.codebook" for i in range(16, 32)]
    assert ours["model"]["freeze"] == ["encoder", "quantizer"]


def test_weights_of_dac_are_the_published_ones_times_the_mean_depth():
    """DAC sums over depths; half of the clips keep all Q, the others 1 to Q."""
    for name, count in (("dac_44k", 9), ("dac_24k", 32), ("dac_16k", 12)):
        config = read_config_file(ROOT / f"{name}.yaml")
        assert len(config["model"]["tokenizer"]["init_args"]["quantizer"]["init_args"]["quantizers"]) == count
        weights = config["model"]["objective"]["init_args"]["weights"]
        depth = 0.5 * count + 0.5 * (1 + count) / 2
        assert weights["codebook"] == depth and weights["commit"] == depth / 4
