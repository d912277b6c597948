"""The index beside the shards: counts, keys, member offsets, sizes, bytes and sha256, in one index.json.

    {"format_version": 1, "samples": 2, "bytes": 10240, "shards": [
      {"name": "000000.tar", "samples": 2, "bytes": 10240, "sha256": "...", "keys": ["a", "b"],
       "members": {"jpg": [512, 3000, 4608, 2800], "json": [4096, 20, -1, 0]},   offset, bytes; -1 absent
       "sizes": [480, 640, 0, 0]}]}                         H, W, or Hz, samples of audio; 0 unknown
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
NAME = "index.json"
MAX_SHARD_BYTES = 1 << 50
MAX_KEY_BYTES = 4096


@dataclass
class Shard:
    """One tar. Arrays are columns over its samples, so that a million of them stay small and pickle fast.

    keys     bytes [n] (utf-8, fixed width)
    members  per extension int64 [n, 2]: offset and size in bytes, offset -1 where a sample lacks it
    sizes    int32 [n, 2]: H, W of upright pictures or frames, or Hz and samples of audio, 0 where unknown
    """

    url: str
    bytes: int
    sha256: str
    keys: NDArray[np.bytes_]
    members: dict[str, NDArray[np.int64]]
    sizes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        """Name of a sample, safe as a relative file name whatever the index says."""
        return safe_key(bytes(self.keys[row]).decode("utf-8"))


@dataclass
class Index:
    """Shards laid end to end; sample numbers run over all of them."""

    shards: list[Shard]
    counts: NDArray[np.int64] = field(init=False)
    starts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.array([len(shard) for shard in self.shards], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, sample: int) -> tuple[int, int]:
        """(shard number, row in it)."""
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return shard, int(sample - self.starts[shard])

    def sizes(self) -> NDArray[np.int32]:
        """int32 [N, 2]: H, W (or Hz, samples) of every sample, 0 where unknown."""
        return np.concatenate([shard.sizes for shard in self.shards])


def make_shard(
    url: str, size: int, sha256: str, keys: list[str], members: list[dict[str, tuple[int, int]]],
    sizes: list[tuple[int, int]],
) -> Shard:
    """A Shard from one row per sample."""
    columns: dict[str, NDArray[np.int64]] = {}
    for ext in sorted({ext for row in members for ext in row}):
        columns[ext] = np.array([row.get(ext, (-1, 0)) for row in members], dtype=np.int64).reshape(-1, 2)
    encoded = np.array([safe_key(key).encode() for key in keys], dtype=np.bytes_)
    return Shard(url, size, sha256, encoded, columns, np.array(sizes, dtype=np.int32).reshape(-1, 2))


def save_index(folder: Path, shards: list[Shard]) -> None:
    """Write index.json atomically; shard names are stored relative to the folder."""
    document = {
        "format_version": FORMAT_VERSION,
        "samples": sum(len(shard) for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
        "shards": [
            {
                "name": Path(shard.url).name, "samples": len(shard), "bytes": shard.bytes, "sha256": shard.sha256,
                "keys": [shard.key(row) for row in range(len(shard))],
                "members": {ext: column.ravel().tolist() for ext, column in shard.members.items()},
                "sizes": shard.sizes.ravel().tolist(),
            }
            for shard in shards
        ],
    }
    write_atomic(folder / NAME, json.dumps(document, separators=(",", ":")).encode())


def parse_index(text: bytes, where: str) -> dict[str, Shard]:
    """Shards by file name, from the bytes of an index.json found at `where` (used in errors)."""
    try:
        document = json.loads(text)
        if document["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{where}: index format {document['format_version']}, this release reads {FORMAT_VERSION}")
        return {_plain_name(entry["name"], where): _parse_shard(entry, where) for entry in document["shards"]}
    except ValueError as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where}: not a shard index ({error}); write one with `mmtok shards check`") from None
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{where}: not a shard index ({error!r}); write one with `mmtok shards check`") from None


def _plain_name(name: Any, where: str) -> str:
    """Shards lie beside their index: a name that leads elsewhere is refused."""
    if not isinstance(name, str) or not name or name in (".", "..") or re.search(r"[/\\\x00-\x1f]", name):
        raise ValueError(f"{where}: {name!r} is no file beside it; run `mmtok shards check --rewrite`")
    return name


def _parse_shard(entry: dict[str, Any], where: str) -> Shard:
    keys, total = entry["keys"], int(entry["bytes"])
    members = {ext: np.array(flat, dtype=np.int64).reshape(-1, 2) for ext, flat in entry["members"].items()}
    sizes = np.array(entry["sizes"], dtype=np.int32).reshape(-1, 2)
    if not 0 <= total <= MAX_SHARD_BYTES:
        raise ValueError(f"{where}: {entry['name']}: {total} bytes cannot be; run `mmtok shards check --rewrite`")
    if entry["samples"] != len(keys) or len(sizes) != len(keys) or any(len(c) != len(keys) for c in members.values()):
        raise ValueError(f"{where}: {entry['name']}: the columns differ in length; run `mmtok shards check --rewrite`")
    for ext, column in members.items():
        if len(column) and (column.min() < -1 or column[:, 1].min() < 0 or column.max() > total):
            raise ValueError(f"{where}: {entry['name']}: .{ext} offsets outside the shard; run `mmtok shards check`")
        if len(column) and int(column.sum(1).max()) > total:
            raise ValueError(f"{where}: {entry['name']}: .{ext} offsets outside the shard; run `mmtok shards check`")
    names = [key.encode("utf-8") for key in keys]
    if max(map(len, names), default=0) > MAX_KEY_BYTES:  # the array is as wide as the longest
        raise ValueError(f"{where}: {entry['name']}: a key of over {MAX_KEY_BYTES} bytes")
    encoded = np.array(names, dtype=np.bytes_)
    return Shard(entry["name"], total, entry["sha256"], encoded, members, sizes)


def safe_key(key: str) -> str:
    """A key that is safe as a relative file name: no absolute path, '..', control characters or over 200 letters."""
    key = "/".join(part for part in key.split("/") if part not in ("", "."))
    parts = [re.sub(r"[^\w\- ]", "_", part) for part in key.split("/")]
    clean = "/".join(part for part in parts if part.strip("_ ")) or "sample"
    if clean != key or len(clean.encode()) > 200:
        digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:8]
        clean = clean.encode()[:180].decode("utf-8", "ignore").rstrip("/") + "-" + digest
    return clean


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary neighbour, fsync, rename: a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
