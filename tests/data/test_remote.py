"""s3, gs and hf shards through the cache (memory stands in for the network), and a cache of bounded size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from mmtok.data import ShardData
from mmtok.data.reader import Reader, load_index
from mmtok.data.remote import cache_limit, evict, open_remote
from mmtok.data.urls import expand_urls


class Bucket(MemoryFileSystem):
    """Counts what is opened."""

    protocol = ("s3", "gs", "hf")
    store: dict = {}
    pseudo_dirs = [""]
    opened: list[str] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.partition("://")[2] if "://" in path else path

    def _open(self, path: str, mode: str = "rb", **options: object):  # type: ignore[no-untyped-def]
        if mode == "rb":
            self.opened.append(path)
        return super()._open(path, mode, **options)


@pytest.fixture
def bucket(shards: Path) -> Iterator[list[str]]:
    before = {name: fsspec.registry.get(name) for name in ("s3", "gs", "hf")}
    for name in before:
        fsspec.register_implementation(name, Bucket, clobber=True)
        for path in shards.iterdir():
            with fsspec.open(f"{name}://data/set/{path.name}", "wb") as file:
                file.write(path.read_bytes())
    Bucket.opened.clear()
    yield Bucket.opened
    for name, old in before.items():
        _registry.pop(name, None)
        if old is not None:
            fsspec.register_implementation(name, old, clobber=True)
    Bucket.store.clear()


@pytest.mark.parametrize("scheme", ["s3", "gs", "hf"])
def test_remote_shards_train_in_the_same_order_as_local_ones(
    bucket: list[str], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """The cache holds two shards, which is the window: each is fetched once an epoch."""
    monkeypatch.setenv("MMTOK_CACHE_GB", str(2.2 * max(p.stat().st_size for p in shards.glob("*.tar")) / 1e9))
    options = {"batch_size": 4, "image_size": 16, "num_workers": 0, "window": 2}
    remote = ShardData(f"{scheme}://data/set/{{000000..000003}}.tar", cache=str(tmp_path), **options)
    loaders = [ShardData(str(shards), **options).train_loader(0, 1), remote.train_loader(0, 1)]
    batches = [list(itertools.islice(iter(loader), 5)) for loader in loaders]
    for one, two in zip(*batches, strict=True):
        assert one.keys == two.keys and one.x.equal(two.x)
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 2
    assert sorted(bucket) == sorted(["/data/set/index.json", *(f"/data/set/{n:06d}.tar" for n in range(4))])


def test_an_evicted_shard_is_fetched_again_and_an_open_one_stays_readable(
    bucket: list[str], shards: Path, tmp_path: Path
) -> None:
    reader = Reader(load_index(expand_urls("s3://data/set/{000000..000001}.tar")), tmp_path)
    first = reader.read(0, ("jpg",))
    evict(tmp_path, 0, tmp_path / "none")
    assert not list(tmp_path.glob("*.tar"))
    assert reader.read(0, ("jpg",)) == first and bucket.count("/data/set/000000.tar") == 1
    reader.close()
    assert reader.read(0, ("jpg",)) == first and bucket.count("/data/set/000000.tar") == 2


def test_changed_and_missing_objects_are_errors(bucket: list[str], shards: Path, tmp_path: Path) -> None:
    index = load_index(expand_urls("gs://data/set/000002.tar"))
    with fsspec.open("gs://data/set/000002.tar", "wb") as file:
        file.write(b"x" * index.shards[0].bytes)
    with pytest.raises(ValueError, match="does not match the size and sha256"):
        Reader(index, tmp_path).read(0, ("jpg",))
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob("*.partial"))
    with pytest.raises(ValueError, match="s3://data/none/index.json: cannot be fetched"):
        load_index(["s3://data/none/0.tar"])


def test_a_missing_driver_and_a_bad_limit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "open", missing)
    with pytest.raises(ValueError, match="pip install s3fs"):
        open_remote("s3://bucket/a.tar")
    monkeypatch.setenv("MMTOK_CACHE_GB", "many")
    with pytest.raises(ValueError, match="MMTOK_CACHE_GB=many"):
        cache_limit()
