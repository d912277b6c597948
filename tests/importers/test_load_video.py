"""Published containers of convolutional video tokenizers end to end."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from mmtok import hub, importers
from mmtok.importers.torchscript import read_torchscript

GOLDEN = Path(__file__).parents[1] / "golden" / "video"
LARGE = Path(os.environ.get("MMTOK_GOLDEN") or GOLDEN.parent) / "video"


class Tree(nn.Module):
    """Modules with the parameters of a state dict, as a traced model has them."""

    def __init__(self, state):
        super().__init__()
        inner = {}
        for key, value in state.items():
            head, _, rest = key.partition(".")
            if rest:
                inner.setdefault(head, {})[rest] = value
            elif value.is_floating_point():
                self.register_parameter(head, nn.Parameter(value))
            else:
                self.register_buffer(head, value)
        for head, part in inner.items():
            self.add_module(head, Tree(part))

    def forward(self, x):
        return x + 1


def archive(state, path):
    torch.jit.trace(Tree(state).eval(), torch.zeros(1)).save(str(path))


def test_tensors_of_an_archive_are_read_and_code_is_not_run(tmp_path):
    shared = torch.randn(6)
    state = {
        "a.weight": torch.randn(2, 3), "a.b.bias": torch.randn(4).to(torch.bfloat16), "steps": torch.arange(3),
        "a.b.small": torch.randn(2, 2).half(), "flipped": torch.randn(3, 2).T, "part": shared[2:5],
        "none": torch.zeros(0), "a.b.scalar": torch.tensor(2.5),
    }  # fmt: skip
    archive(state, tmp_path / "a.jit")
    found = read_torchscript(tmp_path / "a.jit")
    assert set(found) == set(state)
    assert all(found[key].dtype == value.dtype and torch.equal(found[key], value) for key, value in state.items())
    with zipfile.ZipFile(tmp_path / "bad.jit", "w") as bad:
        bad.writestr("bad/data.pkl", b"cos\nsystem\n(S'touch trapped'\ntR.")
    with pytest.raises(ValueError, match="os.system has no place among weights"):
        read_torchscript(tmp_path / "bad.jit")
    (tmp_path / "text.jit").write_text("no archive")
    with pytest.raises(ValueError, match="no TorchScript archive"):
        read_torchscript(tmp_path / "text.jit")


@pytest.mark.skipif(not (LARGE / "cosmos_dv").is_dir(), reason="needs MMTOK_GOLDEN")
@pytest.mark.parametrize("halves", [True, False])
def test_cosmos_archives(tmp_path, halves):
    golden = LARGE / "cosmos_dv"
    state = {key: value.float() for key, value in load_file(golden / "weights.safetensors").items()}
    sizes = json.loads((golden / "config.json").read_text())["constructor"]
    io = load_file(golden / "io.safetensors")
    tables = {"encoder.patcher3d.wavelets": torch.ones(2), "quantizer.implicit_codebook": torch.zeros(9, 6)}
    if halves:
        first = {k: v for k, v in state.items() if k.startswith(("encoder.", "quant_conv."))}
        archive(first | tables, tmp_path / "encoder.jit")
        archive({k: v for k, v in state.items() if k not in first}, tmp_path / "decoder.jit")
    else:
        archive(state | tables, tmp_path / "autoencoder.jit")
    with pytest.raises(ValueError, match="spatial_compression"):
        importers.load("cosmos", tmp_path)
    published = {name: sizes[name] for name in ("spatial_compression", "temporal_compression")}
    (tmp_path / "config.json").write_text(json.dumps(published))
    assert set(tables) <= set(importers.read_published("cosmos", tmp_path).dropped)
    tokenizer = importers.load("cosmos", tmp_path)
    assert torch.equal(tokenizer.encode(io["x"]).codes[:, 0], io["indices"])


def test_vidtok_checkpoint_with_its_yaml(tmp_path):
    golden, state = GOLDEN / "vidtok_v1_0", load_file(GOLDEN / "vidtok_v1_0" / "weights.safetensors")
    facts, io = json.loads((golden / "config.json").read_text()), load_file(golden / "io.safetensors")
    torch.save({"epoch": 3, "state_dict": state | {"loss.logvar": torch.zeros(())}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="config.yaml"):
        importers.load("vidtok", tmp_path)
    encoder = {"target": "vidtok.modules.model_3dcausal.EncoderCausal3DPadding", "params": facts["encoder_decoder"]}
    params = {"encoder_config": encoder, "regularizer_config": {"params": facts["regularizer"]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    tokenizer = importers.load("vidtok", tmp_path)
    assert torch.equal(tokenizer.encode(io["x"]).codes[:, 0], io["indices"])
    again = hub.load(hub.save(tokenizer, tmp_path / "ours"))
    assert torch.equal(again.encode(io["x"]).codes, tokenizer.encode(io["x"]).codes)
    assert "loss.logvar" in importers.read_published("vidtok", tmp_path).dropped
    encoder["target"] = "vidtok.modules.model_3dnoncausal.Encoder3D"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    with pytest.raises(ValueError, match="not causal"):
        importers.load("vidtok", tmp_path)
