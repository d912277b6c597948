"""`mmtok encode` and `mmtok decode` on sound files: formats, rates, channels, lengths, faults."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmtok.bitstream import load_tokens
from mmtok.cli import main
from mmtok.data.audio_samples import find_clips
from mmtok.hub import build, load, save

SPECTRAL = "mmtok.models.audio.spectral"
VQ = {"class_path": "mmtok.quantizers.vq.VQ", "init_args": {"dim": 8, "codebook_size": 16}}
CODEC = {
    "class_path": "mmtok.models.audio.codec.WaveCodec",
    "init_args": {
        "sample_rate": 16000,
        "encoder": {
            "class_path": f"{SPECTRAL}.SpectralEncoder",
            "init_args": {"dim": 8, "width": 16, "hidden": 16, "layers": 1},
        },
        "quantizer": {"class_path": "mmtok.quantizers.residual.Residual", "init_args": {"quantizers": [VQ, VQ, VQ]}},
        "decoder": {
            "class_path": f"{SPECTRAL}.SpectralDecoder",
            "init_args": {"dim": 8, "width": 16, "hidden": 16, "slow": 1, "layers": 1},
        },
        "tail": {
            "class_path": "mmtok.taildrop.UniformTail",
            "init_args": {"coding": {"class_path": "mmtok.keep.Prefix", "init_args": {"axis": 1}}},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save(build(CODEC), tmp_path_factory.mktemp("codec") / "model")


def tone(path: Path, rate: int, seconds: float, channels: int = 1) -> Path:
    t = np.arange(round(rate * seconds)) / rate
    x = np.stack([0.3 * np.sin(2 * np.pi * 300 * (c + 1) * t) for c in range(channels)], 1)
    soundfile.write(path, x, rate)
    return path


@pytest.mark.parametrize(
    ("name", "rate", "seconds", "channels"),
    [("a.wav", 16000, 1.0, 1), ("a.flac", 44100, 0.73, 2), ("a.ogg", 48000, 0.5, 1), ("a.wav", 8000, 25.0, 1),
     ("a.wav", 11025, 0.0012, 1), ("a.mp3", 24000, 1.3, 2), ("a.wav", 96000, 0.2, 8)],
)  # fmt: skip
def test_rate_and_length_come_back(codec, tmp_path, capsys, name, rate, seconds, channels):
    source = tone(tmp_path / name, rate, seconds, channels)
    out, back = tmp_path / "a.mmt", tmp_path / "back.wav"
    assert main(["encode", str(source), "-o", str(out), "--model", str(codec), "--num-quantizers", "2"]) == 0
    assert "kbps" in capsys.readouterr().out
    assert main(["decode", str(out), "-o", str(back), "--model", str(codec)]) == 0
    before, after = soundfile.info(source), soundfile.info(back)
    assert (after.samplerate, after.frames, after.channels) == (rate, before.frames, 1)
    tokens = load_tokens(out, load(str(codec)))
    assert int(tokens.num_sent) == 2 * tokens.codes.shape[-1]
    expected = float(tokens.bits) / (before.frames / rate) / 1000
    assert float(tokens.kbps) == pytest.approx(expected)
    assert tokens.codes.shape[-1] == -(-max(1, round(before.frames * 16000 / rate)) // 320)


def test_a_file_is_coded_like_its_samples(codec, tmp_path):
    clip = next(c for c in find_clips("samples:audio") if c.speaker == "it_carlo")
    assert main(["encode", str(clip.path), "-o", str(tmp_path / "a.mmt"), "--model", str(codec)]) == 0
    from mmtok.data.decode_audio import EncodedAudio

    x = torch.from_numpy(EncodedAudio(clip.path.read_bytes(), "g722").read())[None]
    tokenizer = load(str(codec))
    tokens = load_tokens(tmp_path / "a.mmt", tokenizer)
    assert torch.equal(tokens.codes, tokenizer.encode(x).codes)
    assert main(["decode", str(tmp_path / "a.mmt"), "-o", str(tmp_path / "a.flac"), "--model", str(codec)]) == 0
    y, rate = soundfile.read(tmp_path / "a.flac", dtype="float32")
    assert rate == 16000 and np.abs(y - tokenizer.decode(tokens)[0, 0].numpy()).max() < 1e-4


def test_split_codes_every_channel(codec, tmp_path):
    source = tone(tmp_path / "s.wav", 16000, 0.4, channels=2)
    run = ["encode", str(source), "-o", str(tmp_path / "out"), "--model", str(codec), "--channels", "split"]
    assert main(run) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["s.1.mmt", "s.2.mmt"]
    assert main(run) == 1  # both are there: kept and named
    x, _ = soundfile.read(source, dtype="float32", always_2d=True)
    tokenizer = load(str(codec))
    for c in range(2):
        tokens = load_tokens(tmp_path / "out" / f"s.{c + 1}.mmt", tokenizer)
        assert torch.equal(tokens.codes, tokenizer.encode(torch.from_numpy(x.T[None, c : c + 1].copy())).codes)


def test_folders_keep_their_paths_and_bad_files_are_named(codec, tmp_path, capsys):
    root = tmp_path / "in"
    (root / "deep").mkdir(parents=True)
    tone(root / "a.wav", 16000, 0.3)
    shutil.copy(find_clips("samples:audio")[0].path, root / "deep" / "b.g722")
    (root / "c.wav").write_text("a text file")
    (root / "d.wav").write_bytes(b"")
    soundfile.write(root / "e.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(root / "f.wav", np.full(100, np.nan), 16000, subtype="FLOAT")
    assert main(["encode", str(root), "-o", str(tmp_path / "out"), "--model", str(codec)]) == 1
    said = capsys.readouterr().err
    assert all(f"{name}.wav" in said for name in "cdef") and said.count("skipped") == 4
    assert main(["decode", str(tmp_path / "out"), "-o", str(tmp_path / "back"), "--model", str(codec)]) == 0
    found = sorted(p.relative_to(tmp_path / "back").as_posix() for p in (tmp_path / "back").rglob("*.wav"))
    assert found == ["a.wav", "deep/b.wav"]


def test_damaged_tokens_and_wrong_wishes(codec, tmp_path, capsys):
    source = tone(tmp_path / "a.wav", 16000, 0.3)
    for wish, text in (
        (["--num-quantizers", "9"], "num_quantizers: this model sends 1 to 3, got 9"),
        (["--num-tokens", "3"], "--num-tokens"),
    ):
        assert main(["encode", str(source), "-o", str(tmp_path / "a.mmt"), "--model", str(codec), *wish]) == 2
        assert text in capsys.readouterr().err and not (tmp_path / "a.mmt").exists()
    assert main(["encode", str(source), "-o", str(tmp_path / "a.mmt"), "--model", str(codec)]) == 0
    data = (tmp_path / "a.mmt").read_bytes()
    (tmp_path / "a.mmt").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert main(["decode", str(tmp_path / "a.mmt"), "-o", str(tmp_path / "x.wav"), "--model", str(codec)]) == 1
    assert "damaged" in capsys.readouterr().err and not (tmp_path / "x.wav").exists()
    assert main(["decode", str(tmp_path / "a.mmt"), "-o", str(tmp_path / "x.png"), "--model", str(codec)]) == 2
    assert ".wav" in capsys.readouterr().err
