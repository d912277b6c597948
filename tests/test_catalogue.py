"""The catalogue: every entry well-formed, with an importer and a recipe that exist and describe the same model."""

import importlib
import re
import runpy
from pathlib import Path

import pytest

from mmtok import importers
from mmtok.catalogue import catalogue, entry_of, published, split_hub
from mmtok.listing import config_path, print_entry, print_remote

ENTRIES = published()
RAW = {"modality": "image", "summary": "s", "licence": "MIT", "code_licence": "MIT", "importer": "titok",
       "files": {"a.pt": "https://x.org/a.pt"}}  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_are_complete(name):
    entry = ENTRIES[name]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert entry.importer in importers.families()
    assert importlib.import_module(f"mmtok.importers.{entry.importer}").SYSTEMS
    assert entry.recipe is None or config_path(entry.recipe).is_file()
    assert entry.parameters is not None, "tests/importers/test_full_size.py counts them"
    assert entry.non_commercial == bool(re.search(r"NC|research licence", entry.licence))
    assert re.fullmatch(r"\d{4}\.\d{5}", entry.paper) and len(entry.summary) <= 110
    assert all(re.fullmatch(r"[a-z0-9_]+", key) and value > 0 for key, value in entry.numbers.items())
    assert all(re.fullmatch(r"[0-9a-f]{8,64}", digits) for digits in entry.sha256.values())
    for local, place in entry.files.items():
        assert "/" not in local and " " not in place
        if place.startswith("hf:"):
            assert split_hub(place)[1].endswith(local), "the local name is that of the hub"


def test_the_page_of_models_is_fresh():
    docs = Path(__file__).parents[1] / "docs"
    fresh = runpy.run_path(str(docs / "write_models.py"))["page"]()
    assert (docs / "models.md").read_text() == fresh, "run python docs/write_models.py"


UNPUBLISHED = {"phenaki"}  # importers whose authors published no weights


def test_every_importer_has_an_entry():
    missing = set(importers.families()) - {entry.importer for entry in ENTRIES.values()} - UNPUBLISHED
    assert not missing, "add the published files to checkpoints/catalogue.yaml"


def test_no_two_entries_share_a_weights_file():
    places = [entry.files[entry.weights] for entry in ENTRIES.values()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(("change", "message"), [
    ({"folder_name": 1}, "unknown .*folder_name"),
    ({"modality": "text"}, "modality"),
    ({"files": {}}, "files is empty"),
    ({"files": {"a.pt": "http://x.org/a.pt"}}, "begins with none"),
    ({"sha256": {"b.pt": "00"}}, "sha256"),
    ({"numbers": {"rfid": 1.0}}, "need protocol"),
])  # fmt: skip
def test_faulty_entries_are_named(change, message):
    with pytest.raises(ValueError, match=f"catalogue.yaml: odd.*{message}"):
        entry_of("odd", RAW | change)
    with pytest.raises(ValueError, match="missing .*licence"):
        entry_of("odd", {"modality": "image"})


def test_the_remote_table_has_every_entry(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MMTOK_HOME", str(tmp_path))
    print_remote()
    out = capsys.readouterr().out
    for name, raw in catalogue().items():
        assert ("folder" in raw) != (re.search(rf"^{name} ", out, re.M) is not None)
    (line,) = [line for line in out.splitlines() if line.startswith("fqgan-dual-ds16 ")]
    assert "CC-BY-NC-4.0 NC" in line and "150.4" in line and "rfid 0.94" in line and "hf:ZechenBai/FQGAN" in line


def test_everything_about_one_entry(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MMTOK_HOME", str(tmp_path))
    for name in ENTRIES:
        print_entry(name)
    capsys.readouterr()
    print_entry("fqgan-dual-ds16")
    out = capsys.readouterr().out
    for text in (
        "CC-BY-NC-4.0, not for commercial use", "huggingface.co/ZechenBai/FQGAN/resolve/main/fqgan_dual_ds16.pt",
        "image/fqgan_dual_ds16", "150.4 M", "rfid 0.94  ImageNet val", "arxiv.org/abs/2411.16681", "not yet",
    ):  # fmt: skip
        assert text in out
    print_entry("image-tiny")
    with pytest.raises(ValueError, match="Did you mean .*titok-l32"):
        print_entry("titok-l33")
