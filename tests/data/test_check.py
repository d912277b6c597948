"""Foreign shards: an index is written, every defect is reported, the rest is kept."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmtok.data import ShardData
from mmtok.data.check import check_shards, scan_shard
from mmtok.data.index import parse_index


def pack(path: Path, members: list[tuple[str, bytes]], mode: str = "w", format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, mode, format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def photos(folder: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted(folder.iterdir())]


def test_foreign_shards_get_an_index_and_train(photos: list[bytes], tmp_path: Path) -> None:
    for number in range(2):
        kinds = ((n, ext) for n in range(5) for ext in ("JPG", "cls"))
        rows = [(f"./d/{number}{n}.{ext}", photos[n] if ext == "JPG" else b"7") for n, ext in kinds]
        rows.append(("d/" + "long" * 40 + str(number) + ".jpg", photos[6]))
        rows[-1:-1] = [(f"../../up{number}.jpg", photos[7])]
        pack(tmp_path / f"s{number}.tar", rows)
    report = check_shards(tmp_path)
    assert report.wrote and report.samples == 14 and not report.bad and not report.problems
    batches = list(ShardData(str(tmp_path), batch_size=7, image_size=16, num_workers=0).train_loader(0, 1))
    keys = {key for batch in batches for key in batch.keys}
    assert len(keys) == 14 and "d/03" in keys and not any(".." in key for key in keys)
    again = check_shards(tmp_path)
    assert not again.wrote and not again.problems


def test_members_that_are_not_adjacent_are_gathered_and_reported(photos: list[bytes], tmp_path: Path) -> None:
    pack(tmp_path / "s.tar", [("a.jpg", photos[0]), ("b.jpg", photos[1]), ("a.txt", b"A"), ("b.txt", b"B")])
    report = check_shards(tmp_path)
    assert report.samples == 2 and any("2 keys are not adjacent" in p for p in report.problems)
    module = ShardData(str(tmp_path), batch_size=2, image_size=16, num_workers=0, text=True)
    (batch,) = module.train_loader(0, 1)
    assert dict(zip(batch.keys, batch.text or (), strict=True)) == {"a": "A", "b": "B"}


def test_every_defect_is_reported(photos: list[bytes], tmp_path: Path) -> None:
    twice = [("a.jpg", photos[0]), ("a.jpg", photos[1])]
    pack(tmp_path / "a.tar", [*twice, ("README", b"x"), ("bad.jpg", b"no"), ("e.png", b"")])
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        link = tarfile.TarInfo("l.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    pack(tmp_path / "c.tar", [("a.jpg", photos[0]), ("f.flac", b"fLaC"), ("g.json", b"{}")])
    report = check_shards(tmp_path)
    text = "\n".join(report.problems)
    parts = ("a.tar: 1 members occur twice", "without extension", "b.tar: 1 links", "1 keys occur in more than one")
    for part in parts:
        assert part in text
    assert {(shard, key, reason.partition(":")[0]) for shard, key, reason in report.bad} == {
        ("a.tar", "bad", "unsupported"), ("a.tar", "e", "empty"),
        ("c.tar", "f", "unsupported"), ("c.tar", "g", "no_media"),
    }
    assert report.samples == 6


def test_a_wrong_extension_is_read_by_content_or_counted_once(photos: list[bytes], tmp_path: Path) -> None:
    stream, sound = io.BytesIO(), io.BytesIO()
    Image.open(io.BytesIO(photos[0])).save(stream, "PNG")
    soundfile.write(sound, np.zeros(1600), 16000, format="WAV")
    pack(tmp_path / "s.tar", [
        ("a.png", photos[0]), ("b.jpg", stream.getvalue()), ("c.flac", sound.getvalue()),  # jpeg, png, wav
        ("d.jpg", sound.getvalue()), ("e.wav", photos[0]),
    ])  # fmt: skip
    report = check_shards(tmp_path)
    assert report.samples == 5 and not report.problems
    bad = {key: reason.partition(":")[0] for _, key, reason in report.bad}
    assert bad == {"d": "unsupported", "e": "no_audio"} and len(report.bad) == 2
    (shard,) = parse_index((tmp_path / "index.json").read_bytes(), "index.json").values()
    size = Image.open(io.BytesIO(photos[0])).size[::-1]
    assert [tuple(row) for row in shard.sizes.tolist()] == [size, size, (16000, 1600), (0, 0), (0, 0)]


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def test_pickles_are_never_opened_but_counted(tmp_path: Path, photos: list[bytes]) -> None:
    marker = tmp_path / "ran"
    evil = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    kinds = ("pkl", "pyd", "pth", "pickle", "pt", "emb.pth")
    rows = [(f"k.{ext}", evil) for ext in kinds] + [("k.jpg", photos[0]), ("l.jpg", evil)]
    arrays = {"objects": np.array([{}, None]), "plain": np.arange(3), "fields": np.zeros(2, dtype="i4,O")}
    rows += [(f"k.{name}.npy", npy(array)) for name, array in arrays.items()]
    rows += [("k.text.npy", b"no array"), ("m.PKL", evil), ("m.json", b"{}")]
    pack(tmp_path / "s.tar", rows)
    report = check_shards(tmp_path)
    assert [key for _, key, _ in report.bad] == ["l", "m"]
    assert set(report.problems) == {
        f"s.tar: {count} members that can hold pickles (.{kind}) ignored"
        for kind, count in {"pkl": 2, "pyd": 1, "pth": 2, "pickle": 1, "pt": 1, "npy": 2}.items()
    } | {"s.tar: members of 1 keys are not adjacent (first k); streams would split them"}
    (shard,) = parse_index((tmp_path / "index.json").read_bytes(), "index.json").values()
    assert sorted(shard.members) == ["jpg", "json", "plain.npy", "text.npy"]
    module = ShardData(str(tmp_path), batch_size=2, image_size=16, num_workers=0, max_bad_fraction=1.0)
    list(module.train_loader(0, 1))
    assert not marker.exists()


def test_truncation_anywhere_keeps_what_came_before(photos: list[bytes], tmp_path: Path) -> None:
    path = pack(tmp_path / "s.tar", [(f"k{n}.jpg", photos[n]) for n in range(4)], format=tarfile.USTAR_FORMAT)
    whole = path.read_bytes()
    full, _, _ = scan_shard(path)
    ends = [int(column.sum()) for column in full.members["jpg"]]
    for cut in [*range(0, ends[-1], 512), *range(3, ends[-1], 1777)]:
        path.write_bytes(whole[:cut])
        shard, bad, problems = scan_shard(path)
        assert [shard.key(row) for row in range(len(shard))] == [f"k{n}" for n in range(4) if ends[n] <= cut]
        assert not bad and (problems or cut in [-(-end // 512) * 512 for end in ends])


def test_changed_shards_disagree_with_the_index(photos: list[bytes], tmp_path: Path) -> None:
    pack(tmp_path / "s.tar", [("a.jpg", photos[0])])
    pack(tmp_path / "t.tar", [("b.jpg", photos[1])])
    check_shards(tmp_path)
    before = (tmp_path / "index.json").read_bytes()
    pack(tmp_path / "s.tar", [("a.jpg", photos[2])])
    (tmp_path / "t.tar").rename(tmp_path / "u.tar")
    report = check_shards(tmp_path)
    assert len(report.problems) == 3 and (tmp_path / "index.json").read_bytes() == before
    assert check_shards(tmp_path, rewrite=True).wrote and not check_shards(tmp_path).problems
    assert set(parse_index((tmp_path / "index.json").read_bytes(), "")) == {"s.tar", "u.tar"}


def test_compressed_or_absent_shards_are_named(photos: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no .tar shards"):
        check_shards(tmp_path)
    pack(tmp_path / "s.tar.gz", [("a.jpg", photos[0])], "w:gz")
    with pytest.raises(ValueError, match="s.tar.gz is compressed"):
        check_shards(tmp_path)
    pack(tmp_path / "s.tar.gz", [("a.jpg", photos[0])], "w:gz").rename(tmp_path / "fake.tar")
    assert any("cannot be read" in problem for problem in check_shards(tmp_path).problems)
