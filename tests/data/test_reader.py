"""Shard addresses, the index file, reading by offset, and https through a cache."""

from __future__ import annotations

import http.server
import json
import pickle
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmtok.data.decode import BadSample
from mmtok.data.index import parse_index, safe_key
from mmtok.data.reader import Reader, load_index
from mmtok.data.urls import expand_urls

REFUSED = [
    "pipe:cat /etc/passwd", "http://host/a.tar", "ftp://host/a.tar", "$(touch x).tar", "${HOME}/a.tar", "a`id`.tar",
    "a.tar\nb.tar", "pipe:curl x::a.tar", "a.tar|sh", "a;b.tar", "s3:///a.tar", "gs:a.tar", "hf:pipe:x.tar",
    "https:///a.tar", "file:pipe:x.tar", "simplecache::s3://b/a.tar", "abfs://b/a.tar",
    "/etc/passwd", "file:///etc/passwd", "file:../../../../../../etc/passwd", "https://me:pa55@host/a.tar", "s3://key:pa55@bucket/a.tar",
]


@pytest.mark.parametrize("url", REFUSED)
def test_refused_addresses_start_no_process(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    started: list[object] = []
    for name in ("Popen", "run", "call", "check_output"):
        monkeypatch.setattr(subprocess, name, lambda *a, **k: started.append(a))
    monkeypatch.setattr("os.system", lambda *a: started.append(a))
    monkeypatch.setattr("os.popen", lambda *a: started.append(a))
    with pytest.raises(ValueError, match="data.train") as error:
        expand_urls(url)
    assert "pa55" not in str(error.value), "a password is not repeated"
    assert not started and not list(tmp_path.iterdir())


def test_lists_globs_folders_braces(shards: Path) -> None:
    names = [f"{shards}/{n:06d}.tar" for n in range(4)]
    assert expand_urls(str(shards)) == names
    assert expand_urls(f"{shards}/*.tar") == names
    assert expand_urls(f"file://{shards}/{{000000..000003}}.tar") == names
    assert expand_urls([f"{shards}/{{000002,000001}}.tar", names[1]]) == [names[2], names[1]]
    assert expand_urls("https://h/x-{8..11}.tar") == [f"https://h/x-{n}.tar" for n in (8, 9, 10, 11)]
    assert expand_urls("https://h/{a,b}/{0..1}.tar")[3] == "https://h/b/1.tar"


def test_missing_and_compressed_shards(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    for split in ("train", "heldout"):
        (tmp_path / "set" / split).mkdir(parents=True)
        (tmp_path / "set" / split / "0.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no .tar shards; name one of .*heldout, .*train"):
        expand_urls(str(tmp_path / "set"))
    for url in (str(tmp_path), f"{tmp_path}/no.tar", f"{tmp_path}/*.tar", f"{tmp_path}/a.tar.gz"):
        with pytest.raises(ValueError, match="data.train"):
            expand_urls(url)


def test_members_are_read_by_offset(shards: Path, folder: Path) -> None:
    index = load_index(expand_urls(str(shards)))
    reader = pickle.loads(pickle.dumps(Reader(index)))
    assert len(index) == 22
    for sample in range(22):
        members = reader.read(sample, ("jpg", "txt"))
        assert members == {"jpg": (folder / f"{reader.key(sample)}.jpg").read_bytes()}
    with pytest.raises(BadSample, match="too_large"):
        Reader(index, max_member_bytes=100).read(0, ("jpg",))


def test_a_changed_shard_or_a_missing_index_is_an_error(shards: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(shards, root)
    with open(root / "000001.tar", "r+b") as file:
        file.truncate(5000)
    index = load_index(expand_urls(str(root)))
    with pytest.raises(ValueError, match="000001.tar.*shards check"):
        Reader(index).read(7, ("jpg",))
    (root / "index.json").unlink()
    with pytest.raises(ValueError, match="no index.json.*shards check"):
        load_index(expand_urls(str(root)))


def test_a_hostile_index_is_refused(shards: Path) -> None:
    good = json.loads((shards / "index.json").read_text())

    def refused(change: object, match: str) -> None:
        document = json.loads(json.dumps(good))
        change(document)
        with pytest.raises(ValueError, match=match):
            parse_index(json.dumps(document).encode(), "index.json")

    refused(lambda d: d.update(format_version=9), "format 9")
    refused(lambda d: d.pop("shards"), "not a shard index")
    refused(lambda d: d["shards"][0]["keys"].pop(), "columns differ")
    refused(lambda d: d["shards"][0]["members"]["jpg"].__setitem__(1, 1 << 40), "outside the shard")
    with pytest.raises(ValueError, match="not a shard index"):
        parse_index(b"\x80\x04garbage", "index.json")


HOSTILE = ["../../x", "/etc/passwd", "a\0b", "x" * 300, "..", "", "a/../b", "ä/ö", "a.b", "C:\\x"]


@pytest.mark.parametrize("key", HOSTILE)
def test_keys_stay_inside_a_folder(key: str, tmp_path: Path) -> None:
    safe = safe_key(key)
    path = (tmp_path / safe).resolve()
    assert path.is_relative_to(tmp_path) and path != tmp_path
    assert "." not in safe and "\0" not in safe and len(safe.encode()) <= 200 and safe_key(safe) == safe


def test_safe_keys_do_not_collide() -> None:
    assert safe_key("a.b") != safe_key("a_b") and safe_key("cat/01") == "cat/01"


@pytest.fixture
def https(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The shards behind https on localhost, and the list of requests."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert], check=True, capture_output=True,
    )
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(shards))

        def log_message(self, *args: object) -> None:
            requests.append(self.path)

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    monkeypatch.setenv("no_proxy", "localhost")
    yield f"https://localhost:{server.server_port}", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_https_shards_are_fetched_once_and_verified(https: tuple[str, list[str]], shards: Path, tmp_path: Path) -> None:
    address, requests = https
    index = load_index(expand_urls(f"{address}/{{000000..000003}}.tar"))
    local = Reader(load_index(expand_urls(str(shards))))
    for _ in range(2):
        reader = Reader(index, tmp_path / "cache")
        assert [reader.read(n, ("jpg",)) for n in range(22)] == [local.read(n, ("jpg",)) for n in range(22)]
    assert sorted(requests) == [f"/{n:06d}.tar" for n in range(4)] + ["/index.json"]
    index.shards[0].sha256 = "0" * 64
    with pytest.raises(ValueError, match="does not match"):
        Reader(index, tmp_path / "cache").read(0, ("jpg",))
    assert not list((tmp_path / "cache").glob("*.partial"))
    with pytest.raises(ValueError, match="cannot be fetched"):
        load_index([f"{address}/nothing/0.tar"])
