"""A killed run continues bit for bit; a stopped one leaves a loadable checkpoint."""

import signal

import pytest
import torch
from training_toys import config, keys, same, write_config

from mmtok.training.cli import main


def _arguments(tmp_path, shards, name, workers, *extra):
    node = config(shards, data__init_args__num_workers=workers, name=name, runs=str(tmp_path))
    record = str(tmp_path / f"{name}.keys")
    node["trainer"]["callbacks"] = [{"class_path": "training_toys.Recorder", "init_args": {"path": record}}]
    return ["fit", "-c", write_config(tmp_path / f"{name}.yaml", node), *extra]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_13_equals_uninterrupted(tmp_path, shards, processes, workers):
    whole = _arguments(tmp_path, shards, "whole", workers)
    parts = _arguments(tmp_path, shards, "parts", workers)
    assert processes(main, whole) == 0
    killed = (tmp_path / "parts.yaml").read_text().replace("parts.keys", "parts.keys\n      kill: 13")
    (tmp_path / "killed.yaml").write_text(killed)
    assert processes(main, ["fit", "-c", str(tmp_path / "killed.yaml"), *parts[3:]]) == -signal.SIGKILL
    saved = torch.load(tmp_path / "parts/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 10
    assert processes(main, [*parts, "--ckpt_path", "last"]) == 0

    a, b = (torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True) for run in ("whole", "parts"))
    assert a["global_step"] == 20 and len(a["optimizer_states"]) == 2 and a["ema"]["updates"] == 20
    assert any(key.startswith("objective.terms.adv.network") for key in a["state_dict"])
    for part in ("state_dict", "ema", "optimizer_states", "batches", "skipped", "global_step", "epoch"):
        assert same(a[part], b[part], part) == []
    data = [key for key in a if "ShardData" in key]
    assert data and same(a[data[0]], b[data[0]]) == []
    assert keys(tmp_path / "whole.keys") == keys(tmp_path / "parts.keys")
    rng = [torch.load(tmp_path / f"{run}.rng", weights_only=True) for run in ("whole", "parts")]
    assert same(*rng) == []
    # 26 samples, 4 a batch: 20 steps cross epochs, so order and cursor were really put to the test
    assert len({name for names in keys(tmp_path / "whole.keys").values() for name in names}) == 26


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_says_so_and_goes_on(tmp_path, shards, processes, number):
    arguments = _arguments(tmp_path, shards, "run", 0)
    text = (tmp_path / "run.yaml").read_text()
    told = f"run.keys\n      kill: 7\n      signal: {int(number)}"
    (tmp_path / "run.yaml").write_text(text.replace("run.keys", told))
    assert processes(main, arguments) == 128 + number
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] in (7, 8)  # the signal's own step or, when it came after the check, the next
    (tmp_path / "run.yaml").write_text(text)
    assert processes(main, [*arguments, "--ckpt_path", "last"]) == 0
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 20
