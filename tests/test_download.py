"""Downloads over real https on this machine: resumed, verified, one at a time, and never half a file in place."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

trustme = pytest.importorskip("trustme")
sys.path.insert(0, str(Path(__file__).parent))
import https_server  # noqa: E402

from mmtok import download as module  # noqa: E402
from mmtok.download import download  # noqa: E402

BODY = bytes(range(256)) * 4000  # 1 MB
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    made = trustme.CA()
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    made.cert_pem.write_to_path(str(file))
    return made, file


@pytest.fixture
def site(authority, monkeypatch):
    made, file = authority
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    for name in ("HF_HUB_OFFLINE", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "PAUSE", 0.0)
    server, found = https_server.start(made.issue_cert("localhost"))
    found.files["/a.bin"] = BODY
    yield found
    server.shutdown()
    server.server_close()


def gets(site):
    return [asked for command, _, asked in site.requests if command == "GET"]


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_lands_whole_and_is_not_fetched_twice(site, tmp_path):
    target = tmp_path / "new" / "a.bin"
    assert download(f"{site.url}/a.bin", target, DIGEST) == target
    assert target.read_bytes() == BODY and names(target.parent) == ["a.bin"]
    download(f"{site.url}/a.bin", target, DIGEST)
    assert gets(site) == [None]


def test_an_interrupted_transfer_goes_on_where_it_stopped(site, tmp_path):
    site.cut_after = [300_000, 200_000]
    download(f"{site.url}/a.bin", tmp_path / "a.bin", DIGEST)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert gets(site) == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_call_goes_on_too(site, tmp_path):
    site.cut_after = [400_000, *[0] * module.ATTEMPTS]
    with pytest.raises(OSError, match="calling again goes on at byte 400000.*put it at"):
        download(f"{site.url}/a.bin", tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()
    site.cut_after.clear()
    site.requests.clear()
    download(f"{site.url}/a.bin", tmp_path / "a.bin", DIGEST)
    assert gets(site) == ["bytes=400000-"]


@pytest.mark.parametrize("change", ["version", "ranges"])
def test_a_changed_file_or_a_server_without_ranges_begins_anew(site, tmp_path, change):
    site.cut_after = [400_000, *[0] * module.ATTEMPTS]
    with pytest.raises(OSError):
        download(f"{site.url}/a.bin", tmp_path / "a.bin")
    site.cut_after.clear()
    if change == "version":
        site.version, site.files["/a.bin"] = "two", BODY[::-1]
    else:
        site.ranges = False
    download(f"{site.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == site.files["/a.bin"]


def test_a_part_longer_than_the_file_begins_anew(site, tmp_path):
    site.cut_after = [400_000, *[0] * module.ATTEMPTS]
    with pytest.raises(OSError):
        download(f"{site.url}/a.bin", tmp_path / "a.bin")
    site.cut_after.clear()
    site.files["/a.bin"] = BODY[:1000]
    download(f"{site.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY[:1000]


def test_errors_of_the_moment_are_tried_again_and_lasting_ones_are_not(site, tmp_path):
    site.errors = [503, 500]
    download(f"{site.url}/a.bin", tmp_path / "a.bin", DIGEST)
    assert len(gets(site)) == 3
    site.requests.clear()
    with pytest.raises(OSError, match=rf"HTTP 404.*Fetch {site.url}/none.bin .*put it at {tmp_path}/none.bin"):
        download(f"{site.url}/none.bin", tmp_path / "none.bin")
    assert len(gets(site)) == 1
    site.errors = [403]
    with pytest.raises(OSError, match="403.*login"):
        download(f"{site.url}/a.bin", tmp_path / "b.bin")


def test_another_digest_keeps_nothing(site, tmp_path):
    with pytest.raises(ValueError, match="SHA-256 .* expected 00000000"):
        download(f"{site.url}/a.bin", tmp_path / "a.bin", "0" * 64)
    assert names(tmp_path) == []
    download(f"{site.url}/a.bin", tmp_path / "a.bin", DIGEST[:8])  # the first digits, as in published file names


def test_redirects_are_followed_over_https_only(site, tmp_path):
    site.redirects = {"/moved": f"{site.url}/a.bin", "/down": "http://localhost:1/a.bin"}
    download(f"{site.url}/moved", tmp_path / "a.bin", DIGEST)
    with pytest.raises(ValueError, match="not https"):
        download(f"{site.url}/down", tmp_path / "b.bin")
    with pytest.raises(ValueError, match="only https"):
        download("http://localhost:1/a.bin", tmp_path / "b.bin")


def test_a_web_page_is_not_a_checkpoint(site, tmp_path):
    site.content_type = "text/html; charset=utf-8"
    with pytest.raises(OSError, match="web page"):
        download(f"{site.url}/a.bin", tmp_path / "a.bin")
    assert names(tmp_path) == []


def test_unknown_certificates_are_refused(site, tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        download(f"{site.url}/a.bin", tmp_path / "a.bin")
    assert gets(site) == []


def test_without_a_network_it_fails_at_once(tmp_path, monkeypatch):
    start = time.monotonic()
    with pytest.raises(OSError, match="Fetch https://localhost:9/x.bin on another machine and put it at"):
        download("https://localhost:9/x.bin", tmp_path / "x.bin")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        download("https://localhost:9/x.bin", tmp_path / "x.bin")
    assert time.monotonic() - start < 5


def test_the_proxy_of_the_environment_is_used(tmp_path, monkeypatch):
    seen = []

    def proxy(listening):
        connection, _ = listening.accept()
        seen.append(connection.recv(1000).split(b"\r\n")[0])
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        connection.close()

    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=proxy, args=(listening,), daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(OSError, match="403"):
            download("https://example.invalid/x.bin", tmp_path / "x.bin")
    assert seen == [b"CONNECT example.invalid:443 HTTP/1.1"] or seen == [b"CONNECT example.invalid:443 HTTP/1.0"]


def test_two_processes_fetch_once(site, tmp_path):
    code = "import sys; from pathlib import Path; from mmtok.download import download; "
    code += "download(sys.argv[1], Path(sys.argv[2]), sys.argv[3])"
    command = [sys.executable, "-c", code, f"{site.url}/a.bin", str(tmp_path / "a.bin"), DIGEST]
    running = [subprocess.Popen(command, env=dict(os.environ), cwd=Path(__file__).parents[1]) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert (tmp_path / "a.bin").read_bytes() == BODY and len(gets(site)) == 1


def test_progress_is_shown_on_a_terminal_only(site, tmp_path, monkeypatch, capsys):
    download(f"{site.url}/a.bin", tmp_path / "a.bin")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    download(f"{site.url}/a.bin", tmp_path / "b.bin")
    assert "b.bin: 1.0 of 1.0 MB, 100 %" in capsys.readouterr().err
    download(f"{site.url}/a.bin", tmp_path / "c.bin", quiet=True)
    assert capsys.readouterr().err == ""
