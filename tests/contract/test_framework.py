"""Facts about Lightning and jsonargparse that the training code leans on; a new version that changes one fails here."""

import lightning
import lightning.pytorch as pl
import pytest
import torch
import yaml
from training_toys import config, write_config

from mmtok import hub
from mmtok.training import cli as command
from mmtok.training.cli import main


@pytest.fixture
def run(tmp_path, shards):
    """Trains the toy in this process with changes, and returns the finished CLI."""

    def start(*extra, name="run", before=None, **dotted):
        node = config(shards, name=name, runs=str(tmp_path), **dotted)
        if before:
            before(node)
        return main(["fit", "-c", write_config(tmp_path / f"{name}.yaml", node), *extra])

    return start


def _error(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


def test_malicious_lightning_releases_are_not_installed():
    assert lightning.__version__ not in ("2.6.2", "2.6.3")


def test_global_step_counts_generator_updates_with_a_late_discriminator(run):
    cli = run(trainer__max_steps=7)
    assert cli.trainer.global_step == 7 and cli.model.batches == 7
    adam = cli.model.optimizers()[1].optimizer
    assert {int(s["step"]) for s in adam.state.values()} == {4}  # steps 3, 4, 5, 6: it starts at 3


def test_discriminator_every_second_step(run):
    cli = run(trainer__max_steps=7, model__discriminator_every=2)
    adam = cli.model.optimizers()[1].optimizer
    assert cli.trainer.global_step == 7 and {int(s["step"]) for s in adam.state.values()} == {2}  # steps 4, 6


def test_overrides_reach_interpolations_across_files_and_subcommands(tmp_path, shards, run):
    node = config(shards, name="over", runs=str(tmp_path), trainer__max_steps=1)
    dim = "model.tokenizer.init_args.encoder.init_args.dim"
    other = {"model": {"tokenizer": {"init_args": {"decoder": {"init_args": {"dim": f"${{{dim}}}"}}}}}}
    files = ["-c", write_config(tmp_path / "a.yaml", node), "-c", write_config(tmp_path / "b.yaml", other)]
    cli = main(["fit", *files, "--name", "over", f"--{dim}=6"])
    tokenizer = cli.model.tokenizer
    assert tokenizer.quantizer.dim == 6 and tokenizer.decoder.dim == 6
    # what was saved is resolved, and the exported folder loads
    saved = yaml.safe_load((tmp_path / "over/config.yaml").read_text())
    assert saved["model"]["tokenizer"]["init_args"]["quantizer"]["init_args"]["dim"] == 6
    assert hub.load(tmp_path / "over/tokenizer").quantizer.dim == 6
    shown = main(["validate", *files, "--name", "over", f"--{dim}=6", "--ckpt_path", "last"])
    assert shown.model.tokenizer.quantizer.dim == 6


def test_a_saved_config_runs_again_to_the_same_weights(tmp_path, run):
    first = run(trainer__max_steps=2)
    again = main(["fit", "-c", str(tmp_path / "run/config.yaml"), "--name", "again"])
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_hold_plain_values_and_no_teacher(tmp_path, run):
    def with_teacher(node):
        objective = node["model"]["objective"]["init_args"]
        objective["terms"]["lpips"] = {"class_path": "mmtok.losses.Perceptual", "init_args": {"net": "alex"}}
        objective["weights"]["lpips"] = 0.1

    cli = run(trainer__max_steps=1, before=with_teacher)
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert not [key for key in saved["state_dict"] if "lpips" in key]
    assert sum(p.numel() for p in cli.model.parameters()) < 200_000  # AlexNet alone has 2.5 M


def test_requeueing_the_same_command_works_and_a_second_start_is_refused(tmp_path, run, capsys):
    assert run("--ckpt_path", "last", trainer__max_steps=2).trainer.global_step == 2  # nothing there yet: a fresh start
    assert run("--ckpt_path", "last", trainer__max_steps=4).trainer.global_step == 4
    run("--ckpt_path", "last", trainer__max_steps=4)  # done already: not an error
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        run(trainer__max_steps=4)
    assert "--ckpt_path last" in _error(capsys)


@pytest.mark.parametrize(
    "extra, needle",
    [
        (["--trainer.gradient_clip_val=1"], "model.clip_norm"),
        (["--trainer.accumulate_grad_batches=2"], "model.accumulate"),
        (["--model.tokenizer.init_args.encodr=1"], "encodr"),
        (["--trainr.max_steps=1"], "trainr"),
        (["--nam=x"], "nam"),
        (["--ckpt_path=/nowhere.ckpt"], "/nowhere.ckpt"),
        (["--model.freeze=[encodr]"], "encodr"),
        (["--model.groups={prior.*: {lr_scale: 2}}"], "prior.*"),
        (["--model.init_from=nothing-of-that-name"], "nothing-of-that-name"),
        (["-c", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--apply_tiny"], "tiny"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(run, capsys, extra, needle):
    with pytest.raises(SystemExit) as stop:
        run(*extra, trainer__max_steps=1)
    assert stop.value.code == 2 and needle in _error(capsys)


def test_a_typo_in_the_file_is_an_error_naming_the_key(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(model__clip_nrom=1.0)
    assert "clip_nrom" in _error(capsys)


@pytest.mark.parametrize("option", ["gradient_clip_val", "accumulate_grad_batches"])
def test_options_are_refused_without_the_command_too(run, option):
    cli = run(trainer__max_steps=1)
    trainer = pl.Trainer(**{option: 2}, accelerator="cpu", logger=False, max_steps=1)
    with pytest.raises(ValueError, match="model.clip_norm|model.accumulate"):
        trainer.fit(cli.model, cli.datamodule)


def test_half_precision_with_clipping_is_refused(run):
    cli = run(trainer__max_steps=1)
    trainer = pl.Trainer(accelerator="cpu", logger=False, max_steps=1)
    trainer.strategy.precision_plugin.precision = "16-mixed"  # a CPU has no 16-mixed to ask for
    with pytest.raises(ValueError, match="16-mixed"):
        trainer.fit(cli.model, cli.datamodule)


def test_fused_optimizers_clip(run):
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001, "fused": True}}
    cli = run(trainer__max_steps=2, trainer__precision="bf16-mixed", model__generator_optimizer=optimizer)
    assert cli.trainer.global_step == 2 and all(torch.isfinite(p).all() for p in cli.model.parameters())


def test_the_shipped_strategy_follows_the_number_of_processes(run, monkeypatch):
    one = command.Namespace(devices="auto", accelerator="cpu", num_nodes=1)
    assert command._processes(one) == 1
    for devices, nodes, count in ((2, 1, 2), ("4", 2, 8), ([0, 1], 1, 2), ("0,1,2", 1, 3)):
        assert command._processes(command.Namespace(devices=devices, accelerator="auto", num_nodes=nodes)) == count
