"""Every configuration with a `tiny` map trains two steps on a CPU, saves, reloads and gives identical codes.

The losses of both steps are held to golden/tiny_losses.json: whoever changes what a recipe computes sees it here. If it
was meant, `MMTOK_WRITE_GOLDEN=1 pytest tests/test_configs.py` (-k NAME for one) writes the new values; commit the file.
"""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
import yaml

import mmtok.configs
from mmtok import hub
from mmtok.data import decode_torchcodec
from mmtok.training import cli as command
from mmtok.training.config_file import read_config_file

ROOT = Path(mmtok.configs.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.yaml") if path.parent.name != "base")
GOLDEN = Path(__file__).parent / "golden" / "tiny_losses.json"
TOLERANCE = 1e-3  # of other decoders and processors; threads alone move a loss by less (see golden/README.md)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_trains_saves_and_reloads(path, tmp_path, shards, audio_shards, video_shards, speech_model, monkeypatch):
    monkeypatch.setenv("MMTOK_DEBUG", "1")
    monkeypatch.setattr(decode_torchcodec, "usable", lambda: False)  # whose frames differ in rounding
    name, source = path.relative_to(ROOT).with_suffix("").as_posix(), yaml.safe_load(path.read_text())
    assert source.get("tiny") or source.get("base"), f"{path} has no tiny map"
    config = read_config_file(path, tiny=True)
    data = config["data"]
    terms = config["model"]["objective"]["init_args"]["terms"]
    taught = [name for name, term in terms.items() if term.get("init_args", {}).get("teacher", {}).get("class_path", "")
              == "mmtok.losses.SpeechModel"]  # fmt: skip
    if taught:  # models of other people are not shipped: a small random one stands in
        place = f"model.objective.init_args.terms.{taught[0]}.init_args.teacher.init_args.path"
        path = _written(tmp_path / "taught.yaml", {"base": str(path), "tiny": {place: speech_model}})
    audio = data["class_path"].endswith(".AudioData")
    video = data["class_path"].endswith(".VideoData")
    place = f"{audio_shards}/*.tar" if audio else f"{video_shards}/*.tar" if video else f"{shards}/s-*.tar"
    media = [f"--data.init_args.{key}={place}" for key in ("train", "val") if data["init_args"].get(key)]
    extra = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.max_steps=2",
             "--trainer.log_every_n_steps=1"]  # fmt: skip
    cli = command.main(
        ["fit", "-c", str(path), "--apply_tiny", "--name=run", f"--runs={tmp_path}", "--wandb=false", *media, *extra]
    )
    assert cli.trainer.global_step == 2 and cli.model.skipped == 0
    _compare(name, tmp_path / "run" / "metrics.csv")

    folder = tmp_path / "run" / "tokenizer"
    task = cli.model
    if task.ema is not None:
        task.ema.swap(task.tokenizer)  # what is exported is the average
    tokenizer, loaded = task.tokenizer.eval(), hub.load(folder)
    size = (tokenizer.channels, 5000) if audio else (3, cli.datamodule.eval_size, cli.datamodule.eval_size)
    size = (3, cli.datamodule.eval_frames, *size[1:]) if video else size
    x = torch.rand(2, *size) * 2 - 1
    ours, theirs = tokenizer.encode(x), loaded.encode(x)
    assert len(ours.grids) and all(torch.equal(a, b) for a, b in zip(ours.grids, theirs.grids, strict=True))


def test_no_golden_loss_is_of_a_recipe_that_is_gone():
    names = {path.relative_to(ROOT).with_suffix("").as_posix() for path in FILES}
    gone = sorted(set(json.loads(GOLDEN.read_text())) - names)
    assert not gone, f"take {', '.join(gone)} out of {GOLDEN}"


def _compare(name, log):
    """`loss/total` of both steps against the golden file, or into it."""
    with open(log, newline="") as stream:
        losses = [float(row["loss/total"]) for row in csv.DictReader(stream) if row["loss/total"]]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("MMTOK_WRITE_GOLDEN"):
        rows = sorted((golden | {name: losses}).items())
        GOLDEN.write_text("{\n" + ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in rows) + "\n}\n")
        return
    mend = f"MMTOK_WRITE_GOLDEN=1 pytest tests/test_configs.py -k {name}.yaml"
    assert name in golden, f"{GOLDEN.name} lacks {name}: {mend}"
    assert losses == pytest.approx(golden[name], rel=TOLERANCE), f"{name}: other losses; if that is meant: {mend}"


def _written(file, config):
    file.write_text(yaml.safe_dump(config))
    return file
