"""AudioData: the order, cursor and accounting of images, with clips of any length."""

from __future__ import annotations

import io
import itertools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmtok.data import AudioData
from mmtok.data.audio_samples import AUDIO_SETS, HELDOUT, TRAIN, find_clips
from mmtok.data.check import check_shards
from mmtok.data.shards_cli import describe, make


def data(shards: Path | str, **options: object) -> AudioData:
    defaults = {"sample_rate": 16000, "batch_size": 3, "seconds": 0.5, "hop": 320, "num_workers": 0, "window": 2}
    return AudioData(str(shards), **{**defaults, **options})


def take(loader: object, count: int) -> list:
    return list(itertools.islice(itertools.chain.from_iterable(iter(loader) for _ in range(count)), count))


def test_batches_say_length_and_rate_and_every_clip_comes_once_an_epoch(audio_shards):
    batches = take(data(audio_shards, text=True).train_loader(0, 1), 8)
    for batch in batches:
        assert batch.x.shape == (3, 1, 8000) and batch.x.dtype == torch.float32 and batch.x.abs().max() <= 1
        assert batch.lengths.tolist() == batch.size[:, 0].tolist() == [8000] * 3
        assert batch.rate.tolist() == [16000.0] * 3 and set(batch.text) <= {"one", "more"}
    keys = [key for batch in batches for key in batch.keys]
    assert all(Counter(keys[at : at + 8]) == Counter(keys[:8]) for at in (0, 8, 16)) and len(set(keys[:8])) == 8


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (0, 3), (2, 1)])
def test_the_cursor_continues_with_other_workers_and_ranks(audio_shards, workers, world):
    options = {"speed": (0.9, 1.1), "silence_db": -60.0, "visits": "length"}
    want = take(data(audio_shards, **options).train_loader(0, 1), 7)
    first = data(audio_shards, **options).train_loader(0, 1)
    assert torch.equal(torch.cat([b.x for b in take(first, 4)]), torch.cat([b.x for b in want[:4]]))
    state, parts = first.state_dict(), []
    for rank in range(world):
        loader = data(audio_shards, **options, batch_size=3 // world, num_workers=workers).train_loader(rank, world)
        loader.load_state_dict(state)
        parts.append(take(loader, 3))
        loader.close()
    for step in range(3):
        assert torch.equal(torch.cat([part[step].x for part in parts]), want[4 + step].x)
        assert sum((part[step].keys for part in parts), ()) == want[4 + step].keys


def test_long_clips_are_visited_by_their_length_and_differ(audio_shards):
    loader = data(audio_shards, visits="length", batch_size=1).train_loader(0, 1)
    (count,) = loader.plan.lengths
    batches = take(loader, count)
    visits = Counter(batch.keys[0] for batch in batches)
    seconds = {key: n / 2 for key, n in visits.items()}
    assert len(visits) == 8 and all(1 <= s <= 5 for s in seconds.values()) and count == sum(visits.values()) > 30
    key = max(visits, key=visits.get)
    crops = {batch.x.numpy().tobytes() for batch in batches if batch.keys[0] == key}
    assert len(crops) > visits[key] / 2, "each visit draws a crop of its own"


def test_evaluation_gives_whole_clips_with_their_lengths(audio_shards):
    loader = data(audio_shards, eval_batch_size=5).eval_loader("data.val", str(audio_shards), 0, 1)
    batches = list(loader)
    assert [len(b.keys) for b in batches] == [5, 3]
    for batch in batches:
        assert batch.x.shape[-1] == int(batch.lengths.max())
        for row, length in zip(batch.x, batch.lengths.tolist(), strict=True):
            assert not row[:, length:].any() and row[:, length - 4000 : length].any()
    cut = data(audio_shards, eval_batch_size=5, eval_seconds=1.5)
    (short, _) = cut.eval_loader("data.val", str(audio_shards), 0, 1)
    assert short.lengths.tolist() == [24000] * 5 and torch.equal(short.x, batches[0].x[..., :24000])


def test_bad_members_are_counted_and_replaced(audio_shards, tmp_path, caplog):
    source = tmp_path / "clips"
    source.mkdir()
    clips = find_clips("samples:audio")[:5]
    for clip in clips:
        shutil.copy(clip.path, source / clip.path.name)
    (source / "text.wav").write_text("not a sound at all")
    report = make(str(source), str(tmp_path / "made"))[0]
    assert report.samples == 5 and [key for key, _ in report.bad] == ["text"] and "unsupported" in report.bad[0][1]

    import webdataset

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with webdataset.TarWriter(str(foreign / "a.tar"), encoder=False) as writer:
        for clip in clips:
            writer.write({"__key__": clip.path.stem, "g722": clip.path.read_bytes()})
        writer.write({"__key__": "zz", "wav": b"not a sound"})
    report = check_shards(foreign, progress=False)
    assert [key for _, key, _ in report.bad] == ["zz"] and sum(report.lengths.values()) == 5
    assert "hours of audio" in describe(report)
    batches = take(data(foreign, batch_size=2, max_bad_fraction=0.5).train_loader(0, 1), 6)
    assert "zz" not in {key for batch in batches for key in batch.keys} and "skipped zz" in caplog.text


@pytest.fixture
def taught(tmp_path):
    """Shards of tones whose features count their frames of 10 ms; one file each is bad in its own way."""
    import webdataset

    def npy(array):
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    frames = np.stack([np.arange(300.0), np.zeros(300)], 1)
    claims = npy(frames).replace(b"(300, 2)", b"(900, 2)")
    members = {
        "a": npy(frames.astype(np.float16)), "b": npy(np.asfortranarray(frames)), "c": npy(frames[:299]),
        "absent": None, "claims": claims, "flat": npy(np.zeros(300)), "nan": npy(frames * np.nan),
        "objects": npy(np.array([{}] * 300, dtype=object)), "rate": npy(frames.repeat(2, 0)),
        "short": npy(frames[:150]), "text": b"no array",
    }  # fmt: skip
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        for key, array in members.items():
            wave = np.repeat(np.arange(300, dtype=np.int16) * 100, 160)[: 48000 - 30]  # says in which frame it stands
            stream = io.BytesIO()
            soundfile.write(stream, wave, 16000, format="WAV")
            writer.write({"__key__": key, "wav": stream.getvalue()} | ({} if array is None else {"ssl.npy": array}))
    check_shards(tmp_path, progress=False)
    return tmp_path


def test_features_are_cut_with_the_clip(taught):
    options = {"features": {"ssl": 160}, "hop": 320, "max_bad_fraction": 1.0}
    loader = data(taught, **options, batch_size=2).train_loader(0, 1)
    for batch in take(loader, 12):
        assert set(batch.keys) <= {"a", "b", "c"} and batch.features["ssl"].shape == (2, 50, 2)
        heard = (batch.x[:, 0].view(2, 50, 160)[..., 0] * 32768 / 100).round()
        heard = torch.stack([x.clamp(max=298) if key == "c" else x for key, x in zip(batch.keys, heard, strict=True)])
        assert torch.equal(batch.features["ssl"][..., 0], heard)
    assert loader.counter.reasons.keys() == {"features"}
    evaluation = data(taught, **options, eval_batch_size=5).eval_loader("data.val", str(taught), 0, 1)
    held = {key: (n, f) for b in evaluation for key, n, f in zip(b.keys, b.lengths, b.features["ssl"], strict=True)}
    assert evaluation.bad == {"features": 8} and set(held) == {"a", "b", "c"}
    assert held["a"][1][:, 0].tolist() == list(range(300)) and held["c"][1][-2:, 0].tolist() == [298, 298]


def test_a_loss_hears_the_features_of_a_shard(taught):
    from mmtok.losses import Semantic
    from mmtok.types import Reconstruction

    (batch,) = take(data(taught, features={"ssl": 160}, hop=320, max_bad_fraction=1.0).train_loader(0, 1), 1)
    same = Reconstruction(batch.x, None, heads={"semantic": batch.features["ssl"]})
    assert float(Semantic("cosine", features="ssl", hop=160)(same, batch, 0)) < 1e-2


def test_user_mistakes_name_the_key(audio_shards):
    for options, key in (
        ({"seconds": 0.01}, "data.seconds"), ({"channels": 3}, "data.channels"), ({"speed": (2, 1)}, "data.speed"),
        ({"eval_seconds": 0.0}, "data.eval_seconds"), ({"sample_rate": 0}, "data.sample_rate"),
        ({"features": {"ssl": 300}}, "data.features.ssl"), ({"features": {"ssl": 320}, "short": "loop"}, "data.short"),
        ({"features": {"ssl": 320}, "speed": (0.9, 1.1)}, "data.speed"),
    ):
        with pytest.raises(ValueError, match=key):
            data(audio_shards, **options)


def test_sample_prompts_are_split_by_speaker():
    clips = find_clips("samples:audio")
    speakers = {split: {c.speaker for c in clips if c.split == split} - {"music"} for split in (TRAIN, HELDOUT)}
    assert not speakers[TRAIN] & speakers[HELDOUT] and len(speakers[TRAIN]) == 3
    assert {c.language for c in clips if c.speaker in speakers[HELDOUT]} == {"it", "ru"}
    speech = [c for c in clips if c.speaker != "music"]
    assert len(speech) == 100 and sum(c.path.stat().st_size for c in clips) < 3e6
    for name, folders in AUDIO_SETS.items():
        trained = {language for f in folders if f.split == TRAIN for language in f.languages.split()}
        assert not trained & {"it", "ru"}, f"{name} trains on a held-out language"


def test_samples_materialise_once(tmp_path):
    module = data("samples:audio", val="samples:audio", cache=str(tmp_path))
    module.prepare_data()
    (folder,) = (tmp_path / "samples").iterdir()
    before = (folder / "train" / "index.json").stat().st_mtime_ns
    assert len(module.train_loader(0, 1).dataset.items.reader.index) == 73
    assert sum(len(batch.keys) for batch in module.val_dataloader()) == 31
    module.prepare_data()
    assert (folder / "train" / "index.json").stat().st_mtime_ns == before


def test_debian_sets_are_found_below_a_root(tmp_path, monkeypatch):
    prompt = find_clips("samples:audio")[0].path
    for folder in ("en_US_f_Allison/silence", "en_US_f_Allison/digits", "ru_RU_f_IvrvoiceRU"):
        target = tmp_path / "usr/share/asterisk/sounds" / folder
        target.mkdir(parents=True)
        shutil.copy(prompt, target / "1.g722")
    monkeypatch.setenv("MMTOK_SAMPLES_ROOT", str(tmp_path))
    assert [(c.name, c.split) for c in find_clips("samples:audio-speech")] == [
        ("en_allison/digits/1", TRAIN), ("ru_ivrvoice/1", HELDOUT),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="apt install asterisk-moh-opsound-g722"):
        find_clips("samples:audio-music")
