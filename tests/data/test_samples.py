"""The sample photographs: found without imports, split for ever, never the forbidden wallpapers in training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmtok.data import ShardData
from mmtok.data.decode import EncodedImage
from mmtok.data.samples import SETS, find_photos

HELDOUT = {"china", "flower", "coffee", "chelsea", "rocket"}


def test_split_is_by_photograph() -> None:
    photos = find_photos("samples:image")
    names = {split: {p.name for p in photos if p.split == split} for split in ("train", "heldout")}
    assert not names["train"] & names["heldout"] and len(photos) == len(names["train"] | names["heldout"])
    assert {name.rpartition("/")[2] for name in names["heldout"]} > HELDOUT
    assert sum(name.startswith("tiktok") for name in names["heldout"]) == 8
    assert {"scikit-image/motorcycle_left", "scikit-image/motorcycle_right"} < names["train"]
    assert len(names["train"]) >= 35 and all(p.licence and p.package for p in photos)
    paths = [p.path for p in photos]
    assert len({path.read_bytes() for path in paths}) == len(paths), "no photograph twice"
    for photo in photos:
        assert min(EncodedImage(photo.path.read_bytes()).size) >= 256


def test_lists_are_disjoint_and_wallpapers_stay_out_of_training() -> None:
    for groups in SETS.values():
        for group in groups:
            both = (group.train + " " + group.heldout).split()
            assert len(both) == len(set(both))
    assert not any(group.train for group in SETS["samples:image-wallpapers"])
    packages = " ".join(group.package for group in SETS["samples:image"])
    assert "lomiri" not in packages and "mate-" not in packages


def test_debian_packages_are_found_under_a_root(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTOK_SAMPLES_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match="apt install.*mate-backgrounds"):
        find_photos("samples:image-wallpapers")
    dune = tmp_path / "usr/share/backgrounds/mate/nature/Dune.jpg"
    dune.parent.mkdir(parents=True)
    dune.write_bytes((folder / "i01.jpg").read_bytes())
    (photo,) = find_photos("samples:image-wallpapers")
    assert photo.split == "heldout" and photo.name == "mate-backgrounds/Dune"
    with pytest.raises(ValueError, match="data.train"):
        ShardData("samples:image-wallpapers", cache=str(tmp_path / "c"), num_workers=0).train_loader(0, 1)
    with pytest.raises(ValueError, match="no such sample set"):
        find_photos("samples:cats")


def test_finding_them_imports_nothing() -> None:
    code = (
        "import sys; from mmtok.data.samples import find_photos; find_photos('samples:image');"
        "bad = {'skimage', 'sklearn', 'matplotlib', 'interior_photos', 'lightning', 'webdataset'} & set(sys.modules);"
        "from mmtok.data import decode, transforms;"
        "bad |= {'lightning', 'webdataset'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_they_train_and_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ShardData(
        "samples:image", val="samples:image", batch_size=4, image_size=32, num_workers=0, cache=str(tmp_path)
    )
    module.prepare_data()
    batch = next(iter(module.train_dataloader()))
    assert batch.x.shape == (4, 3, 32, 32)
    loader = module.val_dataloader()
    keys = {key for one in loader for key in one.keys}
    assert keys == {p.name for p in find_photos("samples:image") if p.split == "heldout"}
    (made,) = (tmp_path / "samples").iterdir()
    stamp = made.stat().st_mtime_ns
    module.prepare_data()
    assert made.stat().st_mtime_ns == stamp and len(list((tmp_path / "samples").iterdir())) == 1
