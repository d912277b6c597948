"""Samples by number: members are read at the offsets the index gives, from plain local files.

A remote shard is fetched whole into a cache on first use and checked against the index's sha256 (see `remote`).
Nothing is unpacked, unpickled or handed to a shell.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

from mmtok.data.bad import BadSample
from mmtok.data.index import NAME, Index, Shard, parse_index
from mmtok.data.remote import fetch, is_remote, open_remote
from mmtok.data.urls import parent

MAX_INDEX_BYTES = 4 << 30
_OPEN_FILES = 64


class Reader:
    """Reads the members of samples. Opens files lazily, so that it pickles into any worker.

    max_member_bytes, max_sample_bytes  caps; beyond them the sample is bad
    cache                               folder for remote shards
    """

    def __init__(
        self, index: Index, cache: Path | None = None, max_member_bytes: int = 256 << 20,
        max_sample_bytes: int = 512 << 20,
    ) -> None:
        self.index, self.cache = index, cache or cache_folder() / "shards"
        self.max_member_bytes, self.max_sample_bytes = max_member_bytes, max_sample_bytes
        self._files: OrderedDict[int, int] = OrderedDict()

    def key(self, sample: int) -> str:
        shard, row = self.index.locate(sample)
        return self.index.shards[shard].key(row)

    def read(self, sample: int, extensions: tuple[str, ...]) -> dict[str, bytes]:
        """The members of a sample among `extensions`. Raises BadSample: too_large, truncated."""
        number, row = self.index.locate(sample)
        shard, members = self.index.shards[number], {}
        places = {ext: shard.members[ext][row].tolist() for ext in extensions if ext in shard.members}
        places = {ext: (offset, size) for ext, (offset, size) in places.items() if offset >= 0}
        total = sum(size for _, size in places.values())
        for ext, (offset, size) in places.items():
            if size > self.max_member_bytes or total > self.max_sample_bytes:
                raise BadSample("too_large", f".{ext} member of {size} bytes, {total} in all")
            data = os.pread(self._open(number), size, offset)
            if len(data) != size:
                raise BadSample("truncated", f"{shard.url} ends inside .{ext}")
            members[ext] = data
        return members

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        self.close()

    def _open(self, number: int) -> int:
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        shard = self.index.shards[number]
        remote = is_remote(shard.url)
        path = fetch(shard, self.cache) if remote else Path(shard.url)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if remote:  # another process made room in the cache just now
                return self._open(number)
            raise ValueError(f"{path}: no such shard") from None
        except OSError as error:
            raise ValueError(f"{path}: cannot be opened ({error.strerror})") from None
        size = os.fstat(file).st_size
        if size != shard.bytes:
            os.close(file)
            raise ValueError(
                f"{shard.url}: {size} bytes, but index.json says {shard.bytes}; the shard was changed or cut: run "
                f"`mmtok shards check {parent(shard.url)} --rewrite`"
            )
        if len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[number] = file
        return file


def load_index(urls: list[str], key: str = "data.train") -> Index:
    """The index of the given shards, from the index.json in each one's folder. `key` is named in errors."""
    tables: dict[str, dict[str, Shard]] = {}
    shards = []
    for url in urls:
        folder, _, name = url.rpartition("/")
        folder = folder or "."
        if folder not in tables:
            tables[folder] = parse_index(_index_bytes(folder, key), f"{folder}/{NAME}")
        if name not in tables[folder]:
            raise ValueError(f"{key}: {folder}/{NAME} lacks {name}; run `mmtok shards check {folder} --rewrite`")
        shard = tables[folder][name]
        shard.url = url
        shards.append(shard)
    return Index(shards)


def cache_folder() -> Path:
    """MMTOK_HOME, or mmtok in the user's cache."""
    home = os.environ.get("MMTOK_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmtok"


def _index_bytes(folder: str, key: str) -> bytes:
    if is_remote(folder):
        with open_remote(f"{folder}/{NAME}") as response:
            data: bytes = response.read(MAX_INDEX_BYTES + 1)
        if len(data) > MAX_INDEX_BYTES:
            raise ValueError(f"{key}: {folder}/{NAME} is over {MAX_INDEX_BYTES} bytes")
        return data
    path = Path(folder) / NAME
    if not path.is_file():
        raise ValueError(f"{key}: no {NAME} beside the shards in {folder}; run `mmtok shards check {folder}` once")
    return path.read_bytes()
