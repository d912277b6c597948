"""Remote shards: fetched whole, verified, kept in a cache of bounded size.

https goes through the standard library; s3, gs and hf through fsspec and the driver of each (s3fs, gcsfs,
huggingface_hub), which find credentials in their own usual places. Nothing is ever handed to a shell.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtok.data.index import Shard

DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
TIMEOUT = 60  # seconds without a byte


def is_remote(url: str) -> bool:
    """Whether an address of `expand_urls` needs the network."""
    return url.partition("://")[0] in ("https", *DRIVERS)


def open_remote(url: str) -> IO[bytes]:
    """A remote file for reading. ValueError when it cannot be reached, or a driver is not installed."""
    scheme = url.partition("://")[0]
    if scheme == "https":
        return _https(url)
    import fsspec

    try:
        return fsspec.open(url, "rb").open()
    except ImportError:
        raise ValueError(f"{url}: {scheme}: addresses need {DRIVERS[scheme]}: pip install {DRIVERS[scheme]}") from None
    except Exception as error:  # every driver has exceptions of its own
        raise ValueError(f"{url}: cannot be fetched ({' '.join(str(error).split())[:200]})") from None


def fetch(shard: Shard, cache: Path) -> Path:
    """The local copy of a remote shard. One process a machine downloads, the others wait for it."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{hashlib.sha256(shard.url.encode()).hexdigest()[:24]}-{shard.sha256[:12]}.tar"
    if _used(path):
        return path
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _used(path):
            return path
        partial = path.with_suffix(".partial")
        try:
            _download(shard, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    limit = cache_limit()
    if limit is not None:
        evict(cache, limit, path)
    return path


def cache_limit() -> int | None:
    """Bytes that MMTOK_CACHE_GB allows the cache of remote shards, or None. At least a window of shards should fit."""
    text = os.environ.get("MMTOK_CACHE_GB")
    if not text:
        return None
    try:
        return int(float(text) * 1e9)
    except ValueError:
        raise ValueError(f"MMTOK_CACHE_GB={text}: expected a number of gigabytes") from None


def evict(cache: Path, limit: int, spare: Path) -> None:
    """Removes the shards that were opened longest ago until `limit` bytes hold; open ones stay readable."""
    found = []
    for path in cache.glob("*.tar"):
        try:
            found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        except FileNotFoundError:  # another process was first
            continue
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        if path != spare:
            path.unlink(missing_ok=True)
            total -= size


def _used(path: Path) -> bool:
    """Whether the file is there; notes the time for `evict`."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _download(shard: Shard, partial: Path) -> None:
    digest, size = hashlib.sha256(), 0
    with open_remote(shard.url) as response, open(partial, "wb") as file:
        while block := response.read(1 << 20):
            size += len(block)
            if size > shard.bytes:
                break
            digest.update(block)
            file.write(block)
    if size != shard.bytes or digest.hexdigest() != shard.sha256:
        raise ValueError(f"{shard.url}: the download does not match the size and sha256 in its index.json")


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise ValueError(f"{req.full_url}: redirected to {newurl}, only https is allowed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _https(url: str) -> Any:
    handler = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    try:
        return urllib.request.build_opener(_HttpsOnly, handler).open(url, timeout=TIMEOUT)
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(f"{url}: cannot be fetched ({error})") from None
