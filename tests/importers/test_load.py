"""Published containers end to end: read, convert, use, save in our format, load again."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mmtok import hub, importers
from mmtok.importers import llamagen, maskgit_vqgan, titok

GOLDEN = Path(__file__).parents[1] / "golden" / "image"


def golden(system):
    folder = GOLDEN / system
    state = {key: value.float() for key, value in load_file(folder / "weights.safetensors").items()}
    return json.loads((folder / "config.json").read_text()), state, load_file(folder / "io.safetensors")


def test_taming_checkpoint_with_its_yaml(tmp_path):
    facts, state, io = golden("taming_vqgan")
    params = {"embed_dim": facts["embed_dim"], "n_embed": facts["codebook_size"], "ddconfig": facts["ddconfig"]}
    torch.save({"epoch": 3, "state_dict": state | {"loss.logvar": torch.zeros(1)}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="model.yaml"):
        importers.load("taming", tmp_path)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    assert list(importers.read_published("taming", tmp_path).dropped) == ["loss.logvar"]
    tokenizer = importers.load("taming", tmp_path)
    codes = tokenizer.encode(io["x"]).codes
    assert torch.equal(codes[:, 0], io["indices"])
    again = hub.load(hub.save(tokenizer, tmp_path / "ours"))
    assert torch.equal(again.encode(io["x"]).codes, codes)


@pytest.mark.parametrize("nested", ["model", "ema", None])
def test_llamagen_sizes_come_from_the_weights(tmp_path, nested):
    facts, state, io = golden("llamagen_vq")
    file = tmp_path / "vq.pt"
    torch.save({nested: state, "steps": 5} if nested else state, file)
    found = llamagen.facts({}, state)
    assert {k: v for k, v in found.items() if k != "image_size"} == {k: facts[k] for k in found if k != "image_size"}
    assert torch.equal(importers.load("llamagen", file).encode(io["x"]).codes[:, 0], io["indices"])


def test_maskgit_vqgan_sizes_come_from_the_weights(tmp_path):
    facts, state, io = golden("maskgit_vqgan")
    torch.save(state, tmp_path / "maskgit.bin")
    found = maskgit_vqgan.facts({}, state)
    assert {k: v for k, v in found.items() if k != "image_size"} == {k: facts[k] for k in found if k != "image_size"}
    tokenizer = importers.load("maskgit_vqgan", tmp_path / "maskgit.bin")
    assert torch.equal(tokenizer.encode(io["x"] * 2 - 1).codes.view(2, -1), io["indices"])


def test_titok_config_json_gives_flags_their_published_defaults(monkeypatch, tmp_path):
    facts, state, io = golden("one_d_piece")
    for name in ("encoder", "decoder"):
        vit = facts[name]
        size = facts["published_config"]["model"]["vq_model"][f"vit_{name[:3]}_model_size"]
        monkeypatch.setitem(titok.SIZES, size, (vit["width"], vit["layers"], vit["heads"]))
    monkeypatch.setattr(titok, "PIXEL_DECODER", facts["pixel_decoder"])
    monkeypatch.setattr(titok, "PROXY_CODES", facts["proxy_codebook_size"])
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(facts["published_config"]))
    tokenizer = importers.load("titok", tmp_path)
    assert torch.equal(tokenizer.encode(io["x"] * 2 - 1, num_tokens=3).codes[..., :3], io["indices"][..., :3])
    published = facts["published_config"]
    published["model"]["vq_model"]["quantize_mode"] = "vae"
    with pytest.raises(ValueError, match="'vae' makes no codes"):
        titok.facts(published, {})
    with pytest.raises(ValueError, match="lacks 'model'"):
        titok.facts({}, state)


def test_wrong_system_and_wrong_files_are_named(tmp_path):
    _, state, _ = golden("taming_vqgan")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not weights of this system"):
        importers.load("llamagen", tmp_path)
    with pytest.raises(ValueError, match="choose one of .*llamagen, .*titok"):
        importers.load("keymap", tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        importers.load("llamagen", tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="holds none of"):
        importers.load("llamagen", tmp_path.parent)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match="cut.safetensors: damaged"):
        importers.load("llamagen", tmp_path / "cut.safetensors")


class Trap:
    def __reduce__(self):
        return (open, (str(Path(__file__).parent / "trapped"), "w"))


def test_pickled_objects_are_refused_and_never_run(tmp_path):
    torch.save({"state_dict": {}, "callbacks": Trap()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        importers.load("taming", tmp_path / "last.ckpt")
    assert not (Path(__file__).parent / "trapped").exists()
    torch.save({"epoch": 3}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no flat state dict"):
        importers.load("taming", tmp_path / "other.ckpt")
