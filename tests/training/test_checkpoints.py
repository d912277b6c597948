"""Checkpoint files under damage, a full disk and a kill in the middle of writing; what a run notes about itself."""

import csv
import errno
import json
import os
import pickle
import re
import signal
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch
import wandb
from fault_toys import Job, save, save_forever, save_with_a_limit
from training_toys import config, write_config

from mmtok.training import checkpoint_io
from mmtok.training.checkpoint_io import AtomicIO, damage, latest, read_manifest
from mmtok.training.cli import main

IO = AtomicIO()


def step_of(path: Path | None) -> int:
    assert path is not None
    return IO.load_checkpoint(path)["global_step"]


def test_the_one_before_stays_and_the_manifest_knows_both(tmp_path):
    for step in (1, 2, 3):
        last = save(tmp_path, step)
    assert step_of(last) == 3 and step_of(tmp_path / "previous.ckpt") == 2
    assert [row["step"] for row in read_manifest(tmp_path)] == [3, 2, 1]
    assert not os.path.samefile(last, tmp_path / "previous.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "manifest.json", "previous.ckpt"]


@pytest.mark.parametrize("kind", ["cut", "empty", "flipped"])
@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path, capsys, kind, with_manifest):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    data = bytearray(path.read_bytes())
    if kind == "flipped" and not with_manifest:
        data[:4] = b"no!!"  # without a manifest only the container can be judged
    elif kind == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[: {"cut": len(data) - 700, "empty": 0}.get(kind)])
    if not with_manifest:
        (tmp_path / "manifest.json").unlink()
    assert step_of(latest(tmp_path, mend=True)) == 1
    said = capsys.readouterr().err
    assert "last.ckpt is damaged" in said and "going on from previous.ckpt" in said
    assert (tmp_path / "last.ckpt.damaged").is_file() and not path.exists()
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="previous.ckpt is damaged.*no other is whole"):
        latest(tmp_path)


def test_a_full_disk_leaves_the_old_ones_and_says_so(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for where in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left.*before it are intact"):
            patch.setattr(checkpoint_io.os, where, full)
            save(tmp_path, 3)
        assert {path.name for path in tmp_path.iterdir()} == set(before)
        assert step_of(latest(tmp_path)) == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_write_that_fails_half_way_is_an_error_not_a_file(tmp_path, processes):
    save(tmp_path, 1)
    assert processes(save_with_a_limit, str(tmp_path)) == 7
    assert step_of(latest(tmp_path)) == 1 and not list(tmp_path.glob(".*"))


def test_killed_while_writing_always_leaves_a_whole_one(tmp_path, processes):
    step = 0
    for attempt in range(6):
        process = processes.start(save_forever, str(tmp_path))
        while latest_step(tmp_path) <= (step if attempt else 0) and process.is_alive():
            time.sleep(0.01)
        time.sleep(0.003 * attempt)
        process.kill()
        process.join()
        checkpoint_io.sweep(tmp_path)
        path = latest(tmp_path)
        assert path is not None and path.name == "last.ckpt" and damage(path) is None
        step = step_of(path)
        assert step >= 1 and not list(tmp_path.glob(".*.ckpt.*"))


def latest_step(folder: Path) -> int:
    rows = read_manifest(folder)
    return rows[0]["step"] if rows else 0


def test_a_hostile_checkpoint_is_not_unpickled(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.ckpt", "old.ckpt"):
        with pytest.raises(ValueError, match=f"{name} is not a whole checkpoint"):
            IO.load_checkpoint(tmp_path / name, weights_only=False)
    assert not marker.exists()


def test_a_stop_inside_validation_does_not_wait_for_its_end_and_logs_no_part_of_it(tmp_path, shards, processes):
    job = Job(processes.start, tmp_path, shards)
    data = {"data__init_args__val": str(shards / "s-*.tar"), "data__init_args__eval_batch_size": 1}
    fault = {"what": "SIGTERM in validation", "at": 5}
    assert job.run("run", 1, fault=fault, trainer__limit_val_batches=1.0, **data) == [143]
    assert job.checkpoint("run")["global_step"] == 6
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines()))
    assert sum(bool(row["loss/l1"]) for row in rows) == 6 and not any(row.get("val/psnr") for row in rows)


def test_signals_are_heard_where_the_parent_had_blocked_them(tmp_path, shards):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        main(["fit", "-c", write_config(tmp_path / "c.yaml", config(shards, runs=str(tmp_path), trainer__max_steps=1))])
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_run_says_what_it_was_made_of_and_holds_no_secret(tmp_path, shards, monkeypatch):
    secrets = {
        "WANDB_API_KEY": "c0ffee" * 7 + "42", "AWS_SECRET_ACCESS_KEY": "Zx9-very-secret-aws", "HF_TOKEN": "hf_VerySecr",
    }  # fmt: skip
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    node = config(shards, name="run", runs=str(tmp_path), wandb=True, trainer__max_steps=2, checkpoint__every=1)
    cli = main(["fit", "-c", write_config(tmp_path / "c.yaml", node)])
    wandb.finish()
    main(["fit", "-c", str(tmp_path / "c.yaml"), "--ckpt_path", "last", "--trainer.max_steps=3"])
    wandb.finish()
    # offline-run-<time>-<id>: both starts upload into one run
    ids = {path.name.rpartition("-")[2] for path in (tmp_path / "run/wandb").glob("offline-run-*")}
    assert ids == {(tmp_path / "run/wandb_id").read_text()}
    starts = json.loads((tmp_path / "run/manifest.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 2]
    first = starts[0]
    assert first["versions"]["torch"] == metadata.version("torch") and first["versions"]["python"]
    assert first["git"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", first["git"])
    assert len(first["data_sha256"]) == len(first["config_sha256"]) == 64 and first["processes"] == 1
    assert first["data_sha256"] == starts[1]["data_sha256"] and first["config_sha256"] != starts[1]["config_sha256"]
    assert cli.model.shown["perf/memory_gb"] > 0.05 and cli.model.shown["perf/samples_per_second"] > 0
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files) and len(files) > 8
    for path in files:
        data = path.read_bytes()
        for name, value in secrets.items():
            assert value.encode() not in data, f"{name} in {path}"
