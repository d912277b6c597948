"""One file over https into a folder: resumed, verified, renamed into place when it is whole.

Proxies are taken from https_proxy and no_proxy, certificates from the system (or SSL_CERT_FILE).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from filelock import FileLock  # torch depends on it

from mmtok import __version__

ATTEMPTS = 5  # in a row without a single new byte
PAUSE = 1.0  # seconds before the second attempt, then twice as long each time
TIMEOUT = 30.0  # seconds without an answer
BLOCK = 1 << 20


def download(url: str, target: Path, sha256: str | None = None, quiet: bool = False) -> Path:
    """`target`, fetched from `url` unless it is there.

    sha256  hex digits that the digest must begin with (published names often hold eight of them)
    quiet   no progress on stderr; there is none either when stderr is not a terminal

    An interrupted transfer goes on where it stopped (`.<name>.part`), also in a later call, unless the server's file
    has changed meanwhile. Two processes that want the same file: one fetches, the other waits.
    OSError names the address and where to put the file by hand; ValueError when the file is not the one expected.
    """
    if not url.startswith("https://"):
        raise ValueError(f"{url}: only https:// addresses are downloaded")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.is_file():
            return target
        if offline():
            raise OSError(by_hand(url, target, "HF_HUB_OFFLINE is set"))
        part = target.with_name(f".{target.name}.part")
        _fetch(url, part, target, _progress(target.name, quiet))
        try:
            check_sha256(part, sha256, url)
        except ValueError:
            _forget(part)
            raise
        os.replace(part, target)
        _forget(part)
    return target


def offline() -> bool:
    """Whether the environment forbids downloads, as it does for huggingface_hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def by_hand(url: str, target: Path, reason: str) -> str:
    """The sentence that says what to fetch elsewhere, and where to put it."""
    return f"cannot download {target.name}: {reason}. Fetch {url} on another machine and put it at {target}"


def check_sha256(path: Path, wanted: str | None, url: str) -> None:
    """ValueError unless the file's SHA-256 begins with `wanted`."""
    if wanted is None:
        return
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest() if sys.version_info >= (3, 11) else _digest(stream)
    if not found.startswith(wanted.lower()):
        raise ValueError(
            f"{url}: the file has SHA-256 {found[:16]}..., expected {wanted[:16]}: it was changed or replaced at its"
            " source; nothing was kept"
        )


def _digest(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := stream.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never to an address without encryption."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise ValueError(f"{req.full_url} redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, part: Path, target: Path, progress: Callable[[int, int | None], None]) -> None:
    """Fills `part`; tries again as long as bytes arrive."""
    failures = 0
    while True:
        before = _size(part)
        try:
            _transfer(url, part, progress)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # more bytes than the server's file has: begin anew
                _forget(part)
            elif error.code < 500 and error.code != 429:
                hint = " (it may ask for a login)" if error.code in (401, 403) else ""
                raise OSError(by_hand(url, target, f"HTTP {error.code} {error.reason}{hint}")) from None
            reason = f"HTTP {error.code} {error.reason}"
        except urllib.error.URLError as error:  # no route, no name, no certificate: trying again will not help
            raise OSError(by_hand(url, target, str(error.reason))) from None
        except (OSError, http.client.HTTPException) as error:
            reason = f"the transfer broke off ({error or type(error).__name__})"
        failures = failures + 1 if _size(part) <= before else 1
        if failures >= ATTEMPTS:
            raise OSError(by_hand(url, target, f"{reason}; calling again goes on at byte {_size(part)}"))
        time.sleep(PAUSE * 2 ** (failures - 1))


def _transfer(url: str, part: Path, progress: Callable[[int, int | None], None]) -> None:
    """One request; OSError when fewer bytes come than were announced."""
    note, start = part.with_suffix(".note"), _size(part)
    headers = {"User-Agent": f"mmtok/{__version__}", "Accept-Encoding": "identity"}
    known = json.loads(note.read_text()) if note.is_file() else {}
    if start and known.get("url") == url and known.get("version"):
        # If-Range: the rest of the same file, or all of a changed one
        headers |= {"Range": f"bytes={start}-", "If-Range": known["version"]}
    opener = urllib.request.build_opener(_HttpsOnly)
    with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise urllib.error.HTTPError(url, 403, "a web page came instead of the file", answer.headers, None)
        start = start if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        strong = answer.headers.get("ETag", "")
        version = strong if strong and not strong.startswith("W/") else answer.headers.get("Last-Modified")
        note.write_text(json.dumps({"url": url, "version": version}))
        with open(part, "ab" if start else "wb") as out:
            while block := answer.read(BLOCK):
                out.write(block)
                progress(out.tell(), total)
    if total is not None and _size(part) != total:
        raise OSError(f"{_size(part)} of {total} bytes")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_suffix(".note").unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _progress(name: str, quiet: bool) -> Callable[[int, int | None], None]:
    """A line on stderr that says how far it is."""
    if quiet or not sys.stderr.isatty():
        return lambda done, total: None

    def show(done: int, total: int | None) -> None:
        share = f" of {total / 1e6:.1f} MB, {100 * done // max(total, 1)} %" if total else " MB"
        end = "\n" if done == total else ""
        print(f"\r{name}: {done / 1e6:.1f}{share}  ", end=end, file=sys.stderr, flush=True)

    return show
