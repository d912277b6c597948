"""What the doctor finds, and what it never prints."""

import shutil

import pytest
from fault_toys import save

import mmtok.weights
from mmtok import doctor
from mmtok.catalogue import catalogue, checkpoints
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


def test_weights_that_are_here_are_named_and_those_that_are_not_with_their_mend(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MMTOK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MMTOK_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setattr(mmtok.weights.torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    own = next(words for _, what, words in doctor.weights() if what == "tokenizers")
    ours = {name: checkpoints() / raw["folder"] for name, raw in catalogue().items() if "folder" in raw}
    whole = [name for name, folder in ours.items() if (folder / "model.safetensors").is_file()]
    names, rest = own.split("; ")
    assert names == (", ".join(whole) or "no weights here") and rest.startswith(f"{len(catalogue()) - len(ours)} more")
    (place := tmp_path / "home/tokenizers/titok-l32").mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"")
    found = list(doctor.weights())
    assert any("titok-l32;" in words for _, what, words in found if what == "tokenizers")
    (fid,) = [(level, words) for level, what, words in found if "rFID" in words]
    assert fid[0] == "note" and "MMTOK_WEIGHTS_DIR" in fid[1] and "https://" in fid[1]
    (tmp_path / mmtok.weights.INCEPTION_FID.name).write_bytes(b"")
    assert ("ok", "weights", "of rFID found") in list(doctor.weights())


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
