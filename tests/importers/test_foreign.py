"""Files of another system, and damaged ones: one line that names the importer, what is wrong and what to do.

Foreign: the weights of every small golden folder given to every importer of another family, with the published settings
of that family, with those that lie beside the weights, and with none.
Damaged: a key less, another shape, a key more, for every golden folder; cut files and broken configs.
"""

import functools
import importlib
import json
import re
import shutil
from collections import Counter

import full_sizes
import layouts
import pytest
import torch
from golden_sets import ROOTS
from safetensors.torch import load_file

from mmtok import importers
from mmtok.catalogue import published

ENTRIES = published()
FAMILIES = importers.families()
FAMILY = {system: name for name in FAMILIES for system in importlib.import_module(f"mmtok.importers.{name}").SYSTEMS}
FOLDERS = [folder for folder in sorted(ROOTS[0].glob("*/*/")) if folder.name in FAMILY]
# a key, a name in quotes, a setting or a file
NAMED = re.compile(r"'[^']+'|\w+[./\\*]+\w|\w+_\w+")
# families whose files have one layout: what is read, and how, is settled by sizes alone
SHARED = {("adaptok", "larp"): "one code base; an AdapTok without its scorer has LARP's keys"}
# golden folders that hold a part of a published file, or settings under other names: the catalogue's layout stands in
STANDS_IN = {
    "imagefolder_msbr": "robusttok", "imagefolder_msrq": "robusttok", "imagefolder_vq_perturbation": "robusttok",
    "lavit": "lavit-2", "seed_quantizer": "seed-2", "tokenflow_quantizer": "tokenflow-clipb",
    "cogvideox_vae": "cogvideox-vae", "cosmos_dv": "cosmos-dv8x8x8", "cosmos_dv_4x8x8_p2": "cosmos-1-dv4x8x8-360p",
    "cosmos_dv_8x16x16": "cosmos-dv8x16x16", "vidtok_v1_0": "vidtok-fsq-488-4096",
    "vidtok_v1_1": "vidtok-fsq-488-32768-v1-1", "vocos_encodec": "vocos-encodec-24khz",
}  # fmt: skip


def label(folder):
    return folder.name


@functools.cache
def weights(folder):
    return load_file(folder / "weights.safetensors")


@functools.cache
def settings(folder):
    return json.loads((folder / "config.json").read_text())


@functools.cache
def full_size_settings(family):
    """The published settings of the family's first entry in the catalogue."""
    name = next(name for name in full_sizes.CASES if ENTRIES[name].importer == family)
    found = full_sizes.CASES[name].settings
    return ENTRIES[name].published if found is None else found


def complaint(error, named=True):
    """(importer, what is wrong); the form that every message has is checked, and that it names a key or file."""
    text = str(error)
    match = re.fullmatch(r"importer (\w+): (.+)", text)
    assert match and "\n" not in text, text
    assert "The systems are adaptok, " in text and "another system, or a part of one?" in text, text
    wrong = re.split(r"[;:] is it a file of another", match[2])[0]
    assert NAMED.search(wrong) or not named, text
    return match[1], wrong


# ---- files of other systems ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_every_other_family_are_refused(family, monkeypatch):
    said = Counter()
    for folder in FOLDERS:
        if FAMILY[folder.name] == family:
            continue
        for given in (full_size_settings(family), settings(folder), {}):
            monkeypatch.setattr(importers, "read", lambda path, given=given: (given, dict(weights(path))))
            with pytest.raises(ValueError, match="is it a file of another system") as error:
                importers.load(family, folder)
            named, wrong = complaint(error.value, (family, FAMILY[folder.name]) not in SHARED)
            assert named == family
            said[wrong] += 1
    assert said.total() > 100


def test_every_family_reads_a_golden_folder_or_parts_of_others():
    """Nothing is left out of the sweep."""
    assert {FAMILY[folder.name] for folder in FOLDERS} == set(FAMILIES) - {"mage_vqgan"}


# ---- damaged files ---------------------------------------------------------------------------------------------------


def whole(folder, monkeypatch):
    """(family, settings, state) of a file that loads; golden settings of images are what `facts` returns."""
    family = FAMILY[folder.name]
    if folder.name in STANDS_IN:
        name = STANDS_IN[folder.name]
        case = full_sizes.CASES[name]
        given = ENTRIES[name].published if case.settings is None else case.settings
        return family, given, layouts.tensors(case.shapes) | case.values
    if folder.parent.name == "image":
        module = importlib.import_module(f"mmtok.importers.{family}")
        monkeypatch.setattr(module, "facts", lambda published, state: settings(folder))
    return family, settings(folder), weights(folder)


def load(family, given, state, monkeypatch):
    """Through the importer's own door; shapes alone are built."""
    monkeypatch.setattr(importers, "read", lambda path: (given, dict(state)))
    with torch.device("meta"):
        return importers.load(family, "file")


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@pytest.mark.parametrize("folder", FOLDERS, ids=label)
def test_three_damages(folder, monkeypatch):
    """The undamaged file loads in other tests; here its map alone is asked, for a key that is read."""
    family, given, state = whole(folder, monkeypatch)
    monkeypatch.setattr(importers, "read", lambda path: (given, dict(state)))
    source = importers.read_published(family, "file").source
    read = [key for key in state if key in set(source.values()) and state[key].dim()]
    key = read[len(read) // 2]
    ours = {mine for mine, theirs in source.items() if theirs == key}

    with pytest.raises(ValueError, match="missing|hold|no key") as error:
        load(family, given, {k: v for k, v in state.items() if k != key}, monkeypatch)
    named, wrong = complaint(error.value)
    assert named == family and any(name in wrong for name in ours | {key})

    damaged = dict(state)
    damaged[key] = state[key].new_zeros(*state[key].shape[:-1], state[key].shape[-1] + 1)
    with pytest.raises(ValueError, match="the model asks for|which fits no model") as error:
        load(family, given, damaged, monkeypatch)
    named, wrong = complaint(error.value)
    assert named == family and key in wrong

    with pytest.raises(ValueError, match="unknown key") as error:
        load(family, given, state | {"another.network.weight": torch.zeros(2)}, monkeypatch)
    named, wrong = complaint(error.value)
    assert named == family and "another.network.weight" in wrong


def test_cut_files_and_broken_settings(tmp_path):
    """Every container says which file, what is wrong with it and what to do."""
    folder = next(f for f in FOLDERS if f.name == "mimi")
    for name in ("weights.safetensors", "config.json"):
        shutil.copy(folder / name, tmp_path / name)
    importers.load("mimi", tmp_path)
    cut = (tmp_path / "weights.safetensors").read_bytes()
    for size in (0, 5, 100, len(cut) // 2, len(cut) - 1):
        (tmp_path / "weights.safetensors").write_bytes(cut[:size])
        with pytest.raises(ValueError) as error:
            importers.load("mimi", tmp_path)
        text = str(error.value)
        assert text.startswith(f"importer mimi: {tmp_path}/weights.safetensors: damaged") and "\n" not in text
        assert text.endswith("download it again")
    (tmp_path / "weights.safetensors").write_bytes(cut)
    for broken in ("", "{", "[1, 2]", "null", "\x00\x01"):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(ValueError) as error:
            importers.load("mimi", tmp_path)
        text = str(error.value)
        assert text.startswith(f"importer mimi: {tmp_path}/config.json: ") and "\n" not in text
        assert text.endswith("fetch the published file again")
    for name, content in (("model.bin", b""), ("model.ckpt", cut), ("encoder.jit", b"PK\x03\x04"), ("x.pth", b"{}")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        with pytest.raises(ValueError) as error:
            importers.load("mimi", tmp_path / name)
        text = str(error.value)
        assert text.startswith(f"importer mimi: {tmp_path / name}: ") and "\n" not in text


def test_settings_of_another_system(tmp_path, monkeypatch):
    """Right weights beside a wrong config: read from the weights alone, or refused in one line."""
    refused = 0
    for folder in FOLDERS:
        family = FAMILY[folder.name]
        for other in FOLDERS[::4]:
            if FAMILY[other.name] == family:
                continue
            given = settings(other)
            monkeypatch.setattr(importers, "read", lambda path, given=given: (given, dict(weights(path))))
            try:
                importers.read_published(family, folder)
            except ValueError as error:
                complaint(error)
                refused += 1
    assert refused > 100
