"""Putting a speech model into a recipe before training."""

import pytest
import torch
import yaml

import mmtok
from mmtok import hub
from mmtok.listing import config_path
from mmtok.training.config_file import read_config_file
from mmtok.training.speech_frontend import fill, main

SIZES = {"dim": 16, "heads": 2, "layers": 2, "ffn": 32, "conv_dim": 8, "pos_kernel": 16, "pos_groups": 2}


def recipe(**changes):
    tokenizer = read_config_file(config_path("audio/xcodec"), tiny=True)["model"]["tokenizer"]
    tokenizer["init_args"]["frontend"]["init_args"] = SIZES | changes
    return hub.build(tokenizer)


def test_the_speech_model_is_saved_with_the_tokenizer_and_heard(speech_model, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = recipe().eval()
    saved = hub.save(tokenizer, tmp_path / "empty")
    main([str(saved), speech_model, str(tmp_path / "start")])
    started = mmtok.load(tmp_path / "start")
    x = torch.rand(1, 1, 3200, generator=torch.Generator().manual_seed(0)) - 0.5
    theirs = transformers.HubertModel.from_pretrained(speech_model).eval()
    with torch.no_grad():
        states = theirs(torch.nn.functional.pad(x[:, 0], (160, 160)), output_hidden_states=True).hidden_states
        assert torch.allclose(started.frontend(x), torch.stack(states).mean(0), atol=1e-5)
    names = {name for name, p in started.named_parameters() if p.requires_grad}
    assert names and not any(name.startswith("frontend.") for name in names)
    assert yaml.safe_load((tmp_path / "start" / "config.yaml").read_text())["tokenizer"]["class_path"].endswith("Codec")


def test_another_model_is_refused(speech_model):
    with pytest.raises(ValueError, match="does not fit"):
        fill(recipe(layers=3), speech_model)
    plain = read_config_file(config_path("audio/bigcodec"), tiny=True)["model"]["tokenizer"]
    with pytest.raises(ValueError, match="no frontend"):
        fill(hub.build(plain), speech_model)
