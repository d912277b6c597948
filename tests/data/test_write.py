"""Sources to shards and back: the same bytes, captions and facts; nothing overwritten; bad input named."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
from PIL import Image

from mmtok.cli import main
from mmtok.data import AudioData, ShardData
from mmtok.data.index import parse_index
from mmtok.data.shards_cli import check, describe, make


def contents(root: Path) -> dict[str, dict[str, bytes]]:
    """Samples as an independent reader (webdataset) sees them."""
    samples = webdataset.WebDataset(
        [str(p) for p in sorted(root.glob("*.tar"))], shardshuffle=False, empty_check=False
    )
    return {s["__key__"]: {k: v for k, v in s.items() if k[0] != "_"} for s in samples}


def test_plain_folder(folder: Path, tmp_path: Path) -> None:
    (report,) = make(str(folder), str(tmp_path / "out"), samples_per_shard=8)
    assert (report.shards, report.samples, report.bad) == (3, 22, [])
    assert contents(tmp_path / "out") == {p.stem: {"jpg": p.read_bytes()} for p in folder.iterdir()}
    index = parse_index((tmp_path / "out/index.json").read_bytes(), "")
    for name, shard in index.items():
        data = (tmp_path / "out" / name).read_bytes()
        for row in range(len(shard)):
            offset, size = shard.members["jpg"][row]
            assert data[offset : offset + size] == (folder / f"{shard.key(row)}.jpg").read_bytes()
            with Image.open(folder / f"{shard.key(row)}.jpg") as image:
                assert shard.sizes[row].tolist() == [image.height, image.width]
    found = check(str(tmp_path / "out"))
    assert not found.bad and not found.problems and not found.wrote and found.histogram == {1: 8, 64: 14}
    assert "22 samples" in describe(found)


def test_the_same_source_gives_the_same_bytes_with_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        make(str(folder), str(tmp_path / str(workers)), samples_per_shard=6, workers=workers)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_class_folders(folder: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(folder.iterdir())[:6]):
        target = tmp_path / "in" / ("cat" if number % 2 else "dog") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    make(str(tmp_path / "in"), str(tmp_path / "out"))
    samples = contents(tmp_path / "out")
    assert len(samples) == 6
    assert json.loads(samples["cat/i01"]["json"]) == {"class": "cat", "label": 0}
    assert json.loads(samples["dog/i00"]["json"]) == {"class": "dog", "label": 1}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_manifest(folder: Path, tmp_path: Path, kind: str) -> None:
    rows = [{"path": str(p), "text": f"größe {p.stem}, \"q\"", "speaker": "s1"} for p in sorted(folder.iterdir())[:5]]
    manifest = tmp_path / f"m.{kind}"
    with open(manifest, "w", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, ["path", "text", "speaker"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    make(str(manifest), str(tmp_path / "out"), root=str(folder))
    samples = contents(tmp_path / "out")
    assert samples["i03"]["txt"].decode() == 'größe i03, "q"'
    assert json.loads(samples["i03"]["json"]) == {"speaker": "s1"}
    module = ShardData(str(tmp_path / "out"), batch_size=5, image_size=16, num_workers=0, text=True)
    batch = next(iter(module.train_loader(0, 1)))
    assert batch.text == tuple(f'größe {key}, "q"' for key in batch.keys)


@pytest.mark.parametrize("column", ["bytes", "path", "image"])
def test_parquet(folder: Path, tmp_path: Path, column: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(folder.iterdir())[:5]
    value = {
        "bytes": [p.read_bytes() for p in paths], "path": [str(p) for p in paths],
        "image": [{"bytes": p.read_bytes(), "path": p.name} for p in paths],
    }[column]
    table = {column: value, "caption": [p.stem for p in paths], "height": [1, 2, 3, 4, 5]}
    pq.write_table(pa.table(table), tmp_path / "p.parquet")
    make(str(tmp_path / "p.parquet"), str(tmp_path / "out"), root=str(folder))
    samples = sorted(contents(tmp_path / "out").values(), key=lambda s: s["txt"])
    assert [s["jpg"] for s in samples] == [p.read_bytes() for p in paths]
    assert [s["txt"].decode() for s in samples] == [p.stem for p in paths]
    assert json.loads(samples[2]["json"]) == {"height": 3}


def test_features_beside_sounds_go_along(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    frames = np.arange(100, dtype=np.float32)[:, None].repeat(3, 1)
    for name in ("a", "b.c", "bad"):
        soundfile.write(source / f"{name}.wav", np.sin(np.arange(16000) / 9), 16000)
    np.save(source / "a.ssl.npy", frames)
    np.save(source / "a.other_1.npy", frames[:50])
    np.save(source / "b.c.ssl.npy", -frames)
    np.save(source / "bad.ssl.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(source / "unrelated.npy", frames)
    (report,) = make(str(source), str(tmp_path / "out"))
    assert (report.samples, [key for key, _ in report.bad]) == (2, ["bad"]) and "ssl.npy" in report.bad[0][1]
    found = contents(tmp_path / "out")
    assert {key[0]: set(members) for key, members in found.items()} == {
        "a": {"wav", "ssl.npy", "other_1.npy"}, "b": {"wav", "ssl.npy"}
    }  # fmt: skip
    assert found["a"]["ssl.npy"] == (source / "a.ssl.npy").read_bytes()
    data = AudioData(
        str(tmp_path / "out"), sample_rate=16000, seconds=0.5, features={"ssl": 160}, hop=160, batch_size=2,
        num_workers=0,
    )  # fmt: skip
    (batch,) = itertools.islice(data.train_loader(0, 1), 1)
    for key, rows in zip(batch.keys, batch.features["ssl"], strict=True):
        assert float(rows[-1, 0].sign()) == {"a": 1, "b": -1}[key[0]]


def test_re_encoding(folder: Path, tmp_path: Path) -> None:
    make(str(folder), str(tmp_path / "out"), short_side=48, quality=90)
    shard = parse_index((tmp_path / "out/index.json").read_bytes(), "")["000000.tar"]
    assert {tuple(size) for size in shard.sizes.tolist()} == {(72, 48), (48, 100)}
    samples = contents(tmp_path / "out")
    assert samples["i00"]["jpg"] == (folder / "i00.jpg").read_bytes(), "what is small enough keeps its bytes"
    with Image.open(io.BytesIO(samples["i01"]["jpg"])) as image:
        assert image.size == (48, 72)


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="already there and not empty"):
        make(str(folder), str(out))
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    make(str(folder), str(out))
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(ValueError, match="choose another destination"):
        make(str(folder), str(out))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_failed_run_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmtok.data.write.save_index", stop)
    with pytest.raises(KeyboardInterrupt):
        make(str(folder), str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_unusable_files_are_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    good = (folder / "i01.jpg").read_bytes()
    for name, data in {"ok.jpg": good, "cut.jpg": good[:900], "none.png": b"", "text.webp": b"hello"}.items():
        (source / name).write_bytes(data)
    (report,) = make(str(source), str(tmp_path / "out"))
    assert report.samples == 1 and {key for key, _ in report.bad} == {"cut", "none", "text"}
    assert "left out: cut: truncated" in describe(report)


def test_colliding_and_hostile_keys(folder: Path, tmp_path: Path) -> None:
    rows = [{"path": str(folder / "i00.jpg"), "key": key} for key in ("a", "a", "../../x", "a.b", "/abs")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make(str(tmp_path / "m.jsonl"), str(tmp_path / "out"), root=str(folder))
    keys = set(contents(tmp_path / "out"))
    assert len(keys) == 5 and {"a", "a-2"} < keys and not any(".." in key or key[0] == "/" for key in keys)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "path", ["{away}/i00.jpg", "../away/i00.jpg", "link.jpg", "linked/i00.jpg", "sub/../../away/i00.jpg", "a\0.jpg"]
)
def test_a_manifest_reads_nothing_outside_its_folder_unless_a_root_is_stated(
    folder: Path, tmp_path: Path, path: str, kind: str
) -> None:
    """Whoever downloads a data set gets its manifest with it: it must not pull the user's own pictures into shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    away, home = tmp_path / "away", tmp_path / "home"
    away.mkdir()
    (home / "sub").mkdir(parents=True)
    (away / "i00.jpg").write_bytes((folder / "i00.jpg").read_bytes())
    (home / "link.jpg").symlink_to(away / "i00.jpg")
    (home / "linked").symlink_to(away)
    path = path.replace("{away}", str(away))
    manifest = home / f"m.{kind}"
    if kind == "jsonl":
        manifest.write_text(json.dumps({"path": path}))
    else:
        pq.write_table(pa.table({"path": [path]}), manifest)
    words = "is no path" if "\0" in path else "outside .*; if that is meant, state a root"
    with pytest.raises(ValueError, match=words) as error:
        make(str(manifest), str(tmp_path / "out"))
    assert str(error.value).startswith(str(manifest)) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    if "\0" not in path:
        (report,) = make(str(manifest), str(tmp_path / "out"), root=str(tmp_path))
        assert report.samples == 1 and not report.bad


def test_the_command_takes_the_root(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.csv").write_text(f"path\n{folder / 'i00.jpg'}\n")
    command = ["shards", "make", str(tmp_path / "m.csv"), str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 2 and "state a root (--root)" in capsys.readouterr().err
    assert main([*command, "--root", str(folder)]) == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "file,text\na.jpg,x\n", r"m.csv:2: no `path` column"),
        ("m.csv", "path,text\na.jpg\n", "m.csv:2: .*cells"),
        ("m.jsonl", "{}\n", "m.jsonl:1: no `path`"), ("m.jsonl", "{oops\n", "m.jsonl:1: not JSON"),
        ("m.jsonl", "[1]\n", "m.jsonl:1: expected an object"), ("m.parquet", "x", "not a Parquet file"),
        ("m.docx", "x", "expected a folder"), ("m.jsonl", '{"path": "gone.jpg"}\n', "no usable sample.*missing"),
    ],
)
def test_bad_sources_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        make(str(tmp_path / name), str(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(ValueError, match="no such file"):
        make(str(tmp_path / "nowhere"), str(tmp_path / "out"))
