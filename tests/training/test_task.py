"""What the task promises: exact accumulation, guarded steps, averaged weights in validation, starting from weights."""

import csv
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader
from training_toys import config, write_config

import mmtok
from mmtok import hub
from mmtok.losses import L2
from mmtok.quantizers.fsq import FSQ
from mmtok.tokenizer import Tokenizer
from mmtok.training import EMA, Objective, TokenizerTask
from mmtok.training.cli import main
from mmtok.types import Batch


class Decoder(nn.ConvTranspose2d):
    def forward(self, z, keep):
        return super().forward(z)


def _plain(**options) -> TokenizerTask:
    """A tokenizer without any randomness or batch statistics."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(nn.Conv2d(3, 2, 2, 2), FSQ([5, 5]), Decoder(2, 3, 2, 2), (2, 2), (8, 8))
    objective = Objective({"l2": L2()}, {"l2": 1.0})
    return TokenizerTask(tokenizer, objective, lambda p: torch.optim.SGD(p, lr=0.1), **options)


def _batches(images, size):
    return DataLoader(images, size, collate_fn=lambda items: Batch.of(torch.stack(items)))


def _fit(task, loader, tmp_path, steps, **options):
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    trainer.fit(task, loader)
    return trainer


def test_accumulating_equals_a_larger_batch(tmp_path):
    torch.manual_seed(1)
    images = list(torch.rand(24, 3, 8, 8))
    whole, parts = _plain(), _plain(accumulate=3)
    _fit(whole, _batches(images, 6), tmp_path, 4)
    trainer = _fit(parts, _batches(images, 2), tmp_path, 4)
    assert trainer.global_step == 4 and parts.batches == 12
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_bad_batch_is_skipped_and_counted_and_many_stop_the_run(tmp_path):
    images = list(torch.rand(8, 3, 8, 8))
    images[3] = torch.full((3, 8, 8), float("inf"))
    task = _plain(ema=EMA(0.5))
    trainer = _fit(task, _batches(images, 1), tmp_path, 7)
    assert task.skipped == 1 and trainer.global_step == 7 and task.batches == 8 and task.ema.updates == 7
    assert all(torch.isfinite(p).all() for p in task.parameters())
    with pytest.raises(ValueError, match="max_bad_steps.*3 generator updates"):
        _fit(_plain(max_bad_steps=3), _batches([images[3]] * 8, 1), tmp_path, 8)


@pytest.mark.parametrize("start", [0, 100])
def test_validation_sees_averages_once_there_are_some(tmp_path, start):
    seen = {}

    class Watch(pl.Callback):
        def on_validation_batch_end(self, trainer, task, *args):
            seen["inside"] = task.tokenizer.encoder.weight.detach().clone()

        def on_validation_end(self, trainer, task):
            seen["after"] = task.tokenizer.encoder.weight.detach().clone()

    images = list(torch.rand(8, 3, 8, 8))
    task = _plain(ema=EMA(0.9, start=start))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=4, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        callbacks=[Watch()], val_check_interval=4, num_sanity_val_steps=0, default_root_dir=tmp_path,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, _batches(images, 2), _batches(images, 8))
    live = task.tokenizer.encoder.weight
    assert torch.equal(seen["after"], live)
    if start:
        assert torch.equal(seen["inside"], live)
    else:
        assert torch.equal(seen["inside"], task.ema.averages["encoder.weight"])
        assert not torch.equal(seen["inside"], live)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shards):
    """A finished run of three steps with media and W&B, offline."""
    folder = tmp_path_factory.mktemp("trained")
    node = config(shards, name="run", runs=str(folder), trainer__max_steps=3, media__count=2, wandb=True)
    node["trainer"]["val_check_interval"] = 3
    patch = pytest.MonkeyPatch()
    patch.delenv("WANDB_API_KEY", raising=False)
    patch.delenv("WANDB_MODE", raising=False)
    main(["fit", "-c", write_config(folder / "c.yaml", node)])
    patch.undo()
    import wandb

    wandb.finish()
    return folder


def test_a_run_leaves_what_a_user_needs(trained):
    run = trained / "run"
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "3"]
    assert {
        "loss/l1", "loss/commit", "loss/total", "code/usage", "code/perplexity", "code/window_usage", "lr/generator",
        "grad_norm/generator", "perf/samples_per_second", "perf/data_wait", "train/skipped", "val/psnr", "val/psnr_n2",
    } <= set(rows[0])  # fmt: skip
    assert float(rows[3]["val/psnr"]) > 0 and float(rows[2]["loss/total"]) > 0
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    from PIL import Image

    # two images a row; rows: input, 2 codes, 8 codes, all
    assert Image.open(run / "media/step_000000003.png").size == (2 * 32, 4 * 32)
    tokenizer = mmtok.load(run / "tokenizer")
    assert tokenizer.tables is not None and int(tokenizer.tables.plain[0].min()) > 0  # fitted on training data
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    for name, average in saved["ema"]["averages"].items():
        assert torch.equal(tokenizer.state_dict()[name], average)


def test_init_from_folder_and_checkpoint(trained, tmp_path, shards):
    average = mmtok.load(trained / "run/tokenizer").state_dict()
    for source in ("tokenizer", "checkpoints/last.ckpt"):
        node = config(shards, name=Path(source).name, runs=str(tmp_path), trainer__max_steps=1)
        node["model"]["init_from"] = str(trained / "run" / source)
        node["model"]["freeze"] = ["encoder", "quantizer"]
        tokenizer = main(["fit", "-c", write_config(tmp_path / "c.yaml", node)]).model.tokenizer
        for name, value in tokenizer.state_dict().items():
            if name.startswith(("encoder.", "quantizer.")):
                assert torch.equal(value, average[name]), name
        assert not torch.equal(tokenizer.decoder.mask_token, average["decoder.mask_token"])


def test_init_from_names_what_does_not_fit(trained, tmp_path, shards, capsys):
    node = config(shards, name="other", runs=str(tmp_path), trainer__max_steps=1)
    node["model"]["init_from"] = str(trained / "run/tokenizer")
    node["model"]["tokenizer"]["init_args"]["quantizer"]["init_args"]["codebook_size"] = 16
    path = write_config(tmp_path / "c.yaml", node)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "-c", path])
    assert "quantizer.codebook" in capsys.readouterr().err
    cli = main(["fit", "-c", path, "--model.init_ignore=[quantizer.*]"])
    assert cli.trainer.global_step == 1


def test_the_fine_tuning_page_runs(trained, tmp_path, shards, monkeypatch):
    """The YAML and the command of docs/finetuning.md, with its paths replaced by ones that exist here."""
    page = (Path(__file__).parents[2] / "docs/finetuning.md").read_text()
    fine = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.S)[1])
    command = re.search(r"^python train.py (fit .*)$", page, re.M)[1].split()
    node = config(shards, runs=str(tmp_path), trainer__max_steps=2)
    write_config(tmp_path / "toy.yaml", node)
    assert fine["base"] and fine["model"]["init_from"] and fine["data"]["init_args"]["train"]
    fine["base"] = "toy.yaml"
    fine["model"]["init_from"] = str(trained / "run/tokenizer")
    fine["data"]["init_args"] |= {"train": str(shards / "s-*.tar"), "val": str(shards / "s-000000.tar")}
    fine["trainer"] |= {"max_steps": 2, "val_check_interval": 2}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fine))
    monkeypatch.chdir(tmp_path)
    cli = main([Path(a).name if a.endswith(".yaml") else a for a in command])
    assert cli.trainer.global_step == 2 and hub.load(tmp_path / "mine/tokenizer").tokenizer_id
