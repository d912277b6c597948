"""Files from strangers: token files, indexes, configs, weights. An error in one line, never code, hang or crash."""

import json
import os
import pickle
import resource
import shutil
import struct
import sys
import time
import zlib

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok import load
from mmtok.bitstream import pack, unpack
from mmtok.build import build, check_class_paths
from mmtok.data.index import parse_index

CONV = "mmtok.models.image.conv.ConvTokenizer"
SMUGGLED = [
    "os.system", "mmtok.hub.os.system", "mmtok.hub.Path", "mmtok.hub.load", "mmtok.bitstream.os.popen", "mmtok",
    "mmtok.", "mmtok..os", "mmtok/../os.system", "mmtok.training.cli.main", "mmtok.none.Thing", "builtins.eval", 7,
    ["os.system"],
    "mmtok.tokenizer.torch.load", "mmtok.bitstream.MAGIC", "mmtokx.Evil",
]  # fmt: skip


@pytest.mark.parametrize("path", SMUGGLED)
def test_only_classes_that_mmtok_defines_are_built(path, monkeypatch) -> None:
    ran = []
    monkeypatch.setattr(os, "system", lambda *a: ran.append(a))
    monkeypatch.setattr(os, "popen", lambda *a: ran.append(a))
    for config in (
        {"class_path": path, "init_args": {"command": "true"}},
        {"class_path": CONV, "init_args": {"quantizer": {"class_path": path, "init_args": {"command": "true"}}}},
    ):
        with pytest.raises(ValueError) as error:
            build(config)
        assert "\n" not in str(error.value)
    assert not ran


@pytest.mark.parametrize("text", [
    "evil.E", " evil.E\n", '"evil.E"', "'\"evil.E\"'", "!!str evil.E", "evil.inner.E", "{class_path: evil.E}",
    "- evil.E", '"{\\"class\\u005fpath\\": evil.E}"', "torch.nn.Identity", "Identity", "__main__.x", "os.system",
])  # fmt: skip
def test_text_that_jsonargparse_would_take_for_a_class_imports_nothing(text, tmp_path, monkeypatch) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    parts = {"encoder": text, "quantizer": text, "decoder": text, "stride": [8, 8], "size": [64, 64]}
    for class_path in (CONV, "mmtok.tokenizer.Tokenizer"):
        with pytest.raises(ValueError):
            build({"class_path": class_path, "init_args": parts})
    assert "evil" not in sys.modules


def test_text_that_only_looks_like_a_name_is_text() -> None:
    check_class_paths({"file": "merges.txt", "name": "v1.5", "note": "see: {}", "empty": ""}, ("mmtok",))


@pytest.mark.parametrize("name", ["../b.tar", "/etc/passwd", "", ".", "..", "a\0.tar", "a/b.tar", "a\\b.tar", 7, None])
def test_an_index_names_only_what_lies_beside_it(name) -> None:
    row = {"name": name, "samples": 0, "bytes": 9, "sha256": "0", "keys": [], "members": {}, "sizes": []}
    with pytest.raises(ValueError, match=r"^index\.json: .* is no file beside it"):
        parse_index(json.dumps({"format_version": 1, "shards": [row]}).encode(), "index.json")


def folder_with(tmp_path, text: str):
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_yaml_bombs_loops_and_objects_are_refused_quickly(tmp_path) -> None:
    head = "format_version: 1\ntokenizer_id: aaaaaaaa\n"
    layers = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    bomb = f"{head}a0: &a0 [x]\n{layers}tokenizer: {{class_path: {CONV}, init_args: {{size: *a11}}}}\n"
    loop = f"{head}tokenizer: &t {{class_path: {CONV}, init_args: {{encoder: *t}}}}\n"
    deep = f"{head}tokenizer: {'[' * 500}{']' * 500}\n"
    code = f"{head}tokenizer: !!python/object/apply:os.system ['true']\n"
    started = time.perf_counter()
    for text in (bomb, loop, deep, code, "\x00", "- 1", head + "tokenizer: 3\n", "format_version: [1]\ntokenizer: 1\n"):
        with pytest.raises(ValueError):
            load(folder_with(tmp_path, text))
    assert time.perf_counter() - started < 20


def test_forged_safetensors_and_pickles_in_their_place_are_refused(small_model, tmp_path) -> None:
    config = (small_model / "config.yaml").read_text()
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    def tensor(begin: int, end: int) -> dict:
        return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}

    def file(header: bytes, length: int | None = None, body: bytes = b"\0" * 64) -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + body

    overlap = json.dumps({"a": tensor(0, 64), "b": tensor(32, 64)}).encode()
    beyond = json.dumps({"a": tensor(0, 1 << 40)}).encode()
    for data in (
        file(b"{}", 1 << 60), file(b"{}", 99), file(overlap), file(beyond), file(b"{" * 5000), pickle.dumps(Evil()),
    ):
        (tmp_path / "model.safetensors").write_bytes(data)
        (tmp_path / "config.yaml").write_text(config)
        with pytest.raises(ValueError, match="model.safetensors"):
            load(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"encoder.init_args.width": 1 << 20}, "asks for"),  # 12 TB in one layer
        ({"encoder.init_args.width": 1 << 40}, "tokenizer config: "),
        ({"encoder.init_args.layers": 10**9}, "many more layers than its weights have"),
        ({"quantizer.init_args.codebook_size": 1 << 23}, r"safetensors: quantizer\.\S+ is \[64, 4\], config"),
        ({"decoder.init_args.layers": 40}, "safetensors: keys missing"),
    ],
)
def test_a_config_larger_than_its_weights_is_refused_before_memory_is_taken(
    small_model, tmp_path, edit, message
) -> None:
    config = yaml.safe_load((small_model / "config.yaml").read_text())
    for key, value in edit.items():
        *parents, last = f"tokenizer.init_args.{key}".split(".")
        node = config
        for parent in parents:
            node = node[parent]
        assert last in node
        node[last] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(small_model / "model.safetensors", tmp_path)
    load(small_model)  # what is allocated once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kilobytes


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["name", "samples", "bytes", "sha256", "keys", "members", "sizes", "jpg", "class_path"]), inner,
        max_size=5),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(entry=VALUES, column=VALUES, key=VALUES, total=VALUES)
def test_any_index_is_shards_or_one_clear_error(entry, column, key, total) -> None:
    whole = {
        "name": "a.tar", "samples": 1, "bytes": total, "sha256": "0", "keys": [key], "members": {"jpg": column},
        "sizes": [1, 1],
    }  # fmt: skip
    for shards in (entry, [entry], [whole], [whole | {"members": column}], [whole | {"keys": key}]):
        text = json.dumps({"format_version": 1, "samples": 1, "bytes": 1, "shards": shards}).encode()
        try:
            found = parse_index(text, "index.json")
        except ValueError as error:
            assert str(error).startswith("index.json") and len(str(error)) < 5000
            continue
        for shard in found.values():
            for row in range(len(shard)):
                assert 0 < len(shard.key(row).encode()) <= 200


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_as_an_index_are_one_error(data) -> None:
    with pytest.raises(ValueError, match=r"^index\.json"):
        parse_index(data, "index.json")


def test_deep_and_wide_indexes_do_not_exhaust_anything() -> None:
    row = {"name": "a", "bytes": 9, "sha256": "0", "members": {}, "sizes": [1, 1] * 1000, "samples": 1000}
    wide = {"format_version": 1, "shards": [row | {"keys": ["k" * 5000] + ["k"] * 999}]}
    huge = {"format_version": 1, "shards": [row | {"keys": ["k"], "samples": 1, "sizes": [1, 1], "bytes": 1 << 62}]}
    for text in (json.dumps(wide), json.dumps(huge), "[" * 100_000, '{"format_version": 1, "shards": ' + "[" * 100_000):
        with pytest.raises(ValueError, match=r"^index\.json"):
            parse_index(text.encode(), "index.json")


@pytest.fixture(scope="module")
def model(small_model):
    return load(small_model)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_edit_of_a_token_file_is_tokens_or_one_error(model, data) -> None:
    torch.manual_seed(0)
    whole = bytearray(pack(model.encode(torch.rand(1, 3, 64, 64) * 2 - 1, num_tokens=9)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        if len(whole) < 13:
            break
    if len(whole) >= 12 and data.draw(st.booleans()):  # forged: with a checksum that fits
        whole[8:12] = struct.pack("<I", zlib.crc32(bytes(whole[:8] + whole[12:])))
    try:
        tokens = unpack(bytes(whole), model)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    tokens.validate()
