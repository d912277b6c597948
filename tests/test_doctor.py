"""What the doctor finds, and what it never prints."""

import shutil

import pytest
from fault_toys import save

from mmtok import doctor
from mmtok.cli import main


def test_a_healthy_machine(shards, tmp_path, capsys, monkeypatch) -> None:
    secret = "a1b2c3-very-secret"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    save(tmp_path / "runs/one/checkpoints", 3)
    assert main(["doctor", "--data", str(shards), "--runs", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert secret not in out and "online, key set" in out
    for part in ("mmtok ", "torch ", "kernels", "CPU: ", "GPU", "image-tiny", "2 shards, 26 samples", "one: last.ckpt"):
        assert part in out, part
    assert "!!" not in out


def test_what_is_wrong_is_marked_and_changes_the_exit_code(shards, tmp_path, capsys, monkeypatch) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(shards, broken)
    next(broken.glob("*.tar")).write_bytes(b"")
    runs = tmp_path / "runs"
    save(runs / "cut/checkpoints", 3).write_bytes(b"PK")
    assert main(["doctor", "--data", str(broken), str(tmp_path / "none"), "--runs", str(runs)]) == 1
    out = capsys.readouterr().out
    wrong = [line for line in out.splitlines() if line.startswith("!!")]
    assert len(wrong) == 3
    assert "is not what its index says" in wrong[0] and "no shard at" in wrong[1] and "last.ckpt is damaged" in wrong[2]
    monkeypatch.setattr(doctor.metadata, "version", lambda name: {"lightning": "2.6.3"}.get(name, "9"))
    assert any(level == "wrong" and "malicious" in words for level, _, words in doctor.packages())
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
