"""Saved tokenizers: exact, strict, and unable to run foreign code."""

from __future__ import annotations

import os

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mmtok import Batch, load
from mmtok.code_tables import CodeTables
from mmtok.hub import build, fingerprint, save

TRUST = ("mmtok", "toys")
CONFIG = {"class_path": "toys.PrefixOneD", "init_args": {"num_tokens": 8}}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    return save(build(CONFIG, TRUST), tmp_path / "model")


def edit(folder, **changes) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_config_is_resolved_and_versioned(folder) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["format_version"] == 1
    assert config["tokenizer"]["init_args"] == {"num_tokens": 8, "dim": 4}  # the default is written out
    assert config["tokenizer_id"] == load(folder, modules=TRUST).tokenizer_id
    assert len(config["tokenizer_id"]) == 8


def test_others_may_read_what_the_umask_lets_them(folder) -> None:
    plain = folder / "plain"
    plain.touch()
    assert {(folder / name).stat().st_mode for name in ("config.yaml", "model.safetensors")} == {plain.stat().st_mode}


def test_half_precision_files_make_the_codes_of_what_was_saved(tmp_path) -> None:
    model = build(CONFIG, TRUST).eval()
    folder = save(model, tmp_path / "half", dtype=torch.float16)
    assert all(t.dtype != torch.float32 for t in load_file(folder / "model.safetensors").values())
    x = torch.rand(4, 3, 8, 8) * 2 - 1
    assert torch.equal(model.encode(x).codes, load(folder, modules=TRUST).encode(x).codes)


def test_entropy_tables_travel_with_the_weights(tmp_path) -> None:
    model = build(CONFIG, TRUST).eval()
    model.tables = CodeTables((torch.arange(1, 17, dtype=torch.int32)[None],))
    again = load(save(model, tmp_path / "model"), modules=TRUST)
    assert torch.equal(again.tables.plain[0], model.tables.plain[0])
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(again.encode(x).tables.plain[0], model.tables.plain[0])


def test_files_for_use_leave_out_what_only_training_reads(tmp_path) -> None:
    model = build(CONFIG, TRUST).train()
    x = torch.rand(4, 3, 8, 8) * 2 - 1
    for _ in range(3):
        model(Batch.of(x))
    folder = save(model.eval(), tmp_path / "slim", training_state=False)
    assert not {key for key in load_file(folder / "model.safetensors") if "ema" in key or "usage" in key}
    again = load(folder, modules=TRUST)
    assert torch.equal(again.encode(x).codes, model.encode(x).codes)
    assert torch.equal(again.quantizer.ema_sums, again.quantizer.codebook)
    assert (again.quantizer.usage * 16 == 1).all()


def test_other_weights_have_another_id(tmp_path) -> None:
    state = build(CONFIG, TRUST).state_dict()
    first = fingerprint(state)
    state["encoder.1.bias"] = state["encoder.1.bias"] + 1e-6
    assert fingerprint(state) != first


@pytest.mark.parametrize("stored", [{}, {"dtype": torch.float16}, {"training_state": False}])
def test_copies_of_the_same_weights_read_each_others_tokens(tmp_path, stored) -> None:
    """Saved again in another precision, or without what only training reads: the same id, until a weight changes."""
    first = load(save(build(CONFIG, TRUST), tmp_path / "first", **stored), modules=TRUST)
    again = load(save(load(tmp_path / "first", modules=TRUST), tmp_path / "again"), modules=TRUST)
    assert again.tokenizer_id == first.tokenizer_id
    again.decode(first.encode(torch.rand(1, 3, 8, 8)))
    with torch.no_grad():
        next(again.parameters()).view(-1)[0] += 1e-6
    save(again, tmp_path / "changed")
    assert again.tokenizer_id != first.tokenizer_id


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "damaged"),
    (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "damaged"),
    (lambda f: (f / "model.safetensors").unlink(), "missing"),
    (lambda f: (f / "config.yaml").unlink(), "missing"),
    (lambda f: (f / "config.yaml").write_text("a: [1"), "YAML"),
    (lambda f: (f / "config.yaml").write_text("a: 1"), "format_version"),
    (lambda f: edit(f, format_version=99), "newer"),
    (lambda f: edit(f, tokenizer={"class_path": "os.system", "init_args": {"command": "true"}}), "os.system"),
    (lambda f: edit(f, tokenizer={"class_path": "toys.PrefixOneD", "init_args": {"num_tokenz": 8}}), "num_tokenz"),
    (lambda f: edit(f, tokenizer={"class_path": "toys.PrefixOneD", "init_args": {"num_tokens": 9}}), "asks for"),
    (lambda f: save_file({"a": torch.zeros(1)}, f / "model.safetensors"), "keys missing"),
])
def test_damaged_or_hostile_folders_are_one_line_errors(folder, damage, message) -> None:
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load(folder, modules=TRUST)
    assert "\n" not in str(error.value)


def test_nested_class_paths_are_checked_before_anything_is_imported(tmp_path, monkeypatch) -> None:
    (tmp_path / "evil.py").write_text("import os\nos.environ['EVIL'] = '1'\nclass Tail: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = {"class_path": "mmtok.models.image.conv.ConvTokenizer", "init_args": {"tail": {"class_path": "evil.Tail"}}}
    with pytest.raises(ValueError, match="evil.Tail"):
        build(config)
    assert "EVIL" not in os.environ


def test_classes_outside_mmtok_need_trust(folder) -> None:
    with pytest.raises(ValueError, match="toys.PrefixOneD"):
        load(folder)


def test_unknown_names_get_near_ones_and_the_list() -> None:
    with pytest.raises(ValueError, match="no tokenizer named 'titok-132'.*Did you mean .*titok-l32.*mmtok list"):
        load("titok-132")
    with pytest.raises(ValueError, match="no tokenizer named 'qqq': neither a folder nor in .*ue. mmtok list"):
        load("qqq")


def test_a_tokenizer_without_config_cannot_be_saved(tmp_path) -> None:
    import toys

    with pytest.raises(ValueError, match="config"):
        save(toys.PrefixOneD(), tmp_path / "a")
