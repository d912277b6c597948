"""One table over several tokenizers: the same items and protocol for all, or an error; files that say the same."""

import json
from dataclasses import replace

import pytest
import torch
from dct_toy import SIDE, DctTokenizer

from mmtok import compare as module
from mmtok.cli import main
from mmtok.compare import compare
from mmtok.evaluate import main as evaluate
from mmtok.hub import build, load, save

OPTIONS = {"metrics": ("psnr", "ssim"), "num_workers": 0, "quiet": True, "batch_size": 8}


def toy(scale=1.0):
    torch.manual_seed(0)
    return DctTokenizer().eval()


@pytest.fixture(scope="module")
def data(shards):
    return str(shards)


def test_rows_are_those_of_single_evaluations(data, tmp_path, small_model):
    first, second = toy(), load(small_model)
    found = compare(
        [first, second], data, tmp_path / "out", ("dct", "titok"), image_size=SIDE, codecs=("webp",), **OPTIONS
    )
    alone = evaluate(second, data, image_size=SIDE, codecs=(), **OPTIONS)
    assert [row.values for row in found.contenders[1].result.lengths] == [row.values for row in alone.lengths]
    assert found.anchors and not found.contenders[1].result.anchors
    stored = json.loads((tmp_path / "out/compare.json").read_text())
    assert [model["name"] for model in stored["models"]] == ["dct", "titok"]
    assert stored["models"][1]["tokenizer_id"] == second.tokenizer_id and stored["items"] == alone.images
    table = (tmp_path / "out/compare.md").read_text().splitlines()
    assert table[0].startswith("| model | sent | tokens sent | nominal bpp |") and "PSNR, dB" in table[0]
    rows = [line for line in table if line.startswith(("| dct", "| titok", "| WebP"))]
    assert len(rows) == len(found.rows()) and any("- psnr: " in line for line in table)
    kinds = {path.name for path in (tmp_path / "out/plots").iterdir()}
    assert kinds == {f"rate_{key}.{kind}" for key in ("psnr", "ssim") for kind in ("png", "svg")}
    with pytest.raises(ValueError, match="compare.json exists"):
        compare([first], data, tmp_path / "out", **OPTIONS)


def test_models_that_cannot_be_measured_alike_are_refused(data, small_model, monkeypatch):
    models = [toy(), load(small_model)]
    with pytest.raises(ValueError, match="give one --size to all"):
        compare(models, data, names=("a", "b"), **OPTIONS)
    with pytest.raises(ValueError, match="as many different names, got a, a"):
        compare(models, data, names=("a", "a"), **OPTIONS)
    sound = toy()
    sound.modality = "audio"
    with pytest.raises(ValueError, match="a codes image, b audio"):
        compare([toy(), sound], data, names=("a", "b"), **OPTIONS)
    other = toy()
    sound.size, other.size, other.modality = (24000,), (16000,), "audio"
    with pytest.raises(ValueError, match="a works at 24000 Hz, b at 16000 Hz"):
        compare([sound, other], data, names=("a", "b"), **OPTIONS)

    def differing(model, *args, **options):
        result = evaluate(model, *args, **options)
        return replace(result, protocol=result.protocol | ({"rounding": "up"} if options["name"] == "b" else {}))

    monkeypatch.setattr(module, "main", differing)
    with pytest.raises(ValueError, match="b was measured with rounding: up, not"):
        compare([toy(), toy()], data, names=("a", "b"), **OPTIONS)


def test_the_command(data, tmp_path, small_model, capsys):
    again = save(build(load(small_model).config), tmp_path / "again")
    out = str(tmp_path / "out")
    arguments = ["compare", str(small_model), str(again), "--data", data, "--metrics", "psnr", "--workers", "0"]
    assert main([*arguments, "--names", "one", "two", "--lengths", "4", "16", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "| one | 4 tokens |" in printed and "| two | 16 tokens |" in printed
    assert main([*arguments, "--names", "one", "two", "--out", out]) == 2
    assert "compare.json exists" in capsys.readouterr().err
