"""One pass over utterances for all rates equals one encoding per rate; sums, failures, files and commands."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from codec_toy import LEVELS, RATE, codec, voices

from mmtok.bitstream import pack
from mmtok.data.resample import resample
from mmtok.evaluate import command_line, main
from mmtok.evaluate_audio import open_data
from mmtok.metrics.audio.evaluation import AudioEvaluation, AudioPlan
from mmtok.metrics.audio.intrusive import SISDR, STOI
from mmtok.metrics.base import KeyCount
from mmtok.types import Batch


@pytest.fixture(scope="module")
def waves():
    return voices()


@pytest.fixture(scope="module")
def tokenizer(waves):
    return codec(waves)


PLAN = AudioPlan(metrics=("stoi", "si_sdr", "mel", "pesq"))


def run(tokenizer, waves, plan=PLAN):
    evaluation = AudioEvaluation(tokenizer, plan)
    for key, wave in waves.items():
        evaluation.update(key, wave[None])
    return evaluation


def test_one_pass_equals_one_encoding_per_rate(tokenizer, waves):
    result = run(tokenizer, waves).finish()
    assert [row.length for row in result.lengths] == [1, 2, 4] and result.lengths[-1].label == "4 codebooks"
    for row in result.lengths:
        scores, bits, size, seconds, sent = [], 0.0, 0, 0.0, 0
        for wave in waves.values():
            tokens = tokenizer.encode(wave[None, None], num_quantizers=row.length)
            back = tokenizer.decode(tokens)[0, 0]
            assert back.shape == wave.shape
            scores.append((STOI().score(wave, back)["stoi"], SISDR().score(wave, back)["si_sdr"]))
            bits, sent = bits + float(tokens.bits), sent + int(tokens.num_sent)
            size, seconds = size + len(pack(tokens)), seconds + wave.numel() / RATE
        stoi, si_sdr = np.mean(scores, 0)
        assert row.values["stoi"] == pytest.approx(stoi, abs=1e-9)
        assert row.values["si_sdr"] == pytest.approx(si_sdr, abs=1e-5)
        assert row.values["kbps_nominal"] == pytest.approx(bits / seconds / 1000, rel=1e-12)
        assert row.values["kbps_file"] == pytest.approx(8 * size / seconds / 1000, rel=1e-12)
        assert row.values["tokens_per_second"] == pytest.approx(sent / seconds, rel=1e-12)
    assert result.images == 3 and result.audio_seconds == pytest.approx(seconds)
    si_sdr = [row.values["si_sdr"] for row in result.lengths]
    assert si_sdr == sorted(si_sdr) and si_sdr[0] < si_sdr[-1]


def test_the_ground_truth_row_and_codebooks_of_every_level(tokenizer, waves):
    result = run(tokenizer, waves).finish()
    best = {"stoi": 1, "si_sdr": 100, "mel_dac": 0, "pesq_wb": 4.6438}
    assert result.original.values == pytest.approx(best, abs=1e-3)
    assert [book.codebook for book in result.usage] == list(range(LEVELS))
    frames = sum(-(-wave.numel() // 8) for wave in waves.values())
    assert all(book.codes == frames and 0 < book.usage <= 1 for book in result.usage)


def test_states_of_two_halves_add_up(tokenizer, waves):
    whole, left, right = (AudioEvaluation(tokenizer, PLAN) for _ in range(3))
    for i, (key, wave) in enumerate(waves.items()):
        whole.update(key, wave[None])
        (left if i else right).update(key, wave[None])
    for a, b in zip(left.candidates, right.candidates, strict=True):
        for mine, other in zip([*a.panel.states(), a.rate, a.usage], [*b.panel.states(), b.rate, b.usage], strict=True):
            mine.merge(other)
    left.keys.merge(right.keys)
    expected, found = whole.finish(), left.finish()
    for a, b in zip(expected.lengths, found.lengths, strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-12)


def test_failures_are_counted_and_named(tokenizer, waves):
    evaluation = run(tokenizer, {**waves, "quiet": torch.zeros(RATE)}, replace(PLAN, metrics=("pesq", "stoi")))
    evaluation.skip("broken", "corrupt: no header")
    result = evaluation.finish()
    clean = run(tokenizer, waves, replace(PLAN, metrics=("pesq", "stoi"))).finish()
    for row, without in zip(result.lengths, clean.lengths, strict=True):
        assert row.values["pesq_wb"] == pytest.approx(without.values["pesq_wb"], rel=1e-12)
    named = {(f.metric, f.utterance) for f in result.failures}
    assert ("reading", "broken") in named and ("pesq_wb of 4 codebooks", "quiet") in named
    assert ("stoi of original", "quiet") in named
    assert result.skipped == 1 and any("1 utterances of 2 codebooks" in note for note in result.notes)
    assert {"metric": "reading", "utterance": "broken", "reason": "corrupt: no header"} in result.to_json()["failures"]


def test_mistakes_are_one_line_errors(tokenizer, waves):
    with pytest.raises(ValueError, match="1 to 4 codebooks, got"):
        AudioEvaluation(tokenizer, AudioPlan((1, 9), ("stoi",)))
    with pytest.raises(ValueError, match="no utterance could be read"):
        AudioEvaluation(tokenizer, PLAN).finish()
    expected = KeyCount()
    expected.update([*waves, "lost"])
    with pytest.raises(ValueError, match="3 utterances measured and 0 skipped, but the data lists 4"):
        run(tokenizer, waves, replace(PLAN, metrics=("si_sdr",))).finish(expected)
    from dct_toy import DctTokenizer

    with pytest.raises(ValueError, match="expected an audio tokenizer"):
        AudioEvaluation(DctTokenizer(), PLAN)


def test_a_codec_of_one_rate(waves, tokenizer):
    fixed = codec(waves)
    fixed.tail = None
    result = run(fixed, waves, replace(PLAN, metrics=("si_sdr",))).finish()
    assert [row.label for row in result.lengths] == ["all codes"] and result.lengths[0].length is None
    best = run(tokenizer, waves, replace(PLAN, metrics=("si_sdr",))).finish().lengths[-1]
    assert result.lengths[0].values["si_sdr"] == pytest.approx(best.values["si_sdr"])


@pytest.fixture
def folder(tmp_path, waves):
    """Files of several formats and rates, stereo, and one that is a text."""
    root = tmp_path / "speech"
    (root / "deep").mkdir(parents=True)
    soundfile.write(root / "a.wav", waves["voice0"].numpy(), RATE)
    up = resample(waves["voice1"][None].numpy(), RATE, 44100)[0]
    soundfile.write(root / "deep" / "b.flac", np.stack([up, up], 1), 44100)
    (root / "text.wav").write_text("this is no sound")
    (root / "notes.md").write_text("not asked for")
    return root


def test_a_folder_of_files_any_rate_any_channels(folder):
    keys, utterances = open_data(str(folder), RATE, 1)
    found = {u.key: u for u in utterances}
    assert keys == list(found) == ["a.wav", "deep/b.flac", "text.wav"]
    assert found["deep/b.flac"].wave.shape[0] == 1 and found["text.wav"].wave is None and found["text.wav"].reason
    shares = [[u.key for u in open_data(str(folder), RATE, 1, rank=rank, world=2)[1]] for rank in (0, 1)]
    assert shares == [["a.wav", "text.wav"], ["deep/b.flac"]]
    assert open_data(str(folder), RATE, 1, only=("deep/*", "*.ogg"))[0] == ["deep/b.flac"]
    with pytest.raises(ValueError, match="only: no name matches x.*; the first is a.wav"):
        open_data(str(folder), RATE, 1, only=("x*",))
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="holds neither shards"):
        open_data(str(folder / "empty"), RATE, 1)


def test_the_command_writes_everything_and_names_what_failed(folder, tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmtok.evaluate._tokenizer", lambda model: tokenizer)
    out = tmp_path / "out"
    args = ["--model", "toy", "--data", str(folder), "--out", str(out), "--metrics", "pesq", "mel", "--codecs"]
    assert command_line("", args=[*args, "codec2", "--lengths", "1", "4"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["utterances"] == 2 and metrics["skipped"] == 1 and metrics["rate"] == RATE
    assert [f["utterance"] for f in metrics["failures"]] == ["text.wav"]
    assert [row["series"] for row in metrics["anchors"]] == ["Codec 2"] * 5
    assert {"kbps_file", "kbps_payload", "pesq_wb", "mel_dac"} <= set(metrics["anchors"][0]["values"])
    assert sorted(p.name for p in (out / "plots").glob("*.png")) == ["rate_mel_dac.png", "rate_pesq_wb.png"]
    assert (out / "report" / "index.html").exists()
    assert "original" in capsys.readouterr().out
    assert command_line("", args=args) == 2 and "exists" in capsys.readouterr().err
    assert command_line("", args=["--model", "toy", "--data", str(folder), "--metrics", "psnr"]) == 2
    assert "expected some of distillmos" in capsys.readouterr().err


def test_shards_and_samples(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("MMTOK_HOME", str(tmp_path / "home"))
    result = main(tokenizer, "samples:audio", metrics=("si_sdr",), codecs=(), limit=3, quiet=True, lengths=(4,))
    assert result.images == 3 and not result.failures and result.clips[0].rate == RATE
    again = AudioEvaluation(tokenizer, AudioPlan((4,), ("si_sdr",)))
    _, utterances = open_data("samples:audio", RATE, 1, limit=3)
    for utterance in utterances:
        again.update(utterance.key, utterance.wave)
    assert again.finish().lengths[0].values == pytest.approx(result.lengths[0].values)


def test_batches_carry_the_rate(tokenizer, waves):
    wave = waves["voice0"]
    batch = Batch(wave[None, None], ("a",), torch.tensor([[wave.numel()]]), torch.tensor([RATE], dtype=torch.float64))
    assert float(tokenizer.encode(batch).kbps) == pytest.approx(float(tokenizer.encode(wave[None, None]).kbps))
