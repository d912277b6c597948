"""What `mmtok shards make` reads: folders, class folders, manifests, Parquet, sample sets -> one Item a sample."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtok.data.media import AUDIO, MEDIA
from mmtok.data.samples import SampleClip, find_samples
from mmtok.data.urls import confined
from mmtok.data.video_samples import SampleVideo


@dataclass
class Item:
    """One sample to write: media from `path` or `data`, a caption, and what goes into its json.

    camera    the file is a photograph that becomes a video: the seed of the camera's path over it
    features  by name, `stem.<name>.npy` beside the file of a sound: what a frozen model heard
    """

    key: str
    ext: str
    path: Path | None = None
    data: bytes | None = None
    text: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    camera: int | None = None
    features: dict[str, Path] = field(default_factory=dict)


def read_items(source: str, root: Path | None = None) -> Iterator[Item]:
    """Items of a source in its own order, sounds with the features beside them. ValueError names what is wrong with it.

    root  folder below which the paths of a manifest or Parquet file must lie; by default the file's own

    folder            all media files below it, the key is the relative path
    class folder      the same, when every file lies one folder deep: json gets class and label
    *.csv *.tsv *.jsonl  a column `path` (relative to the manifest), optional `text`; the rest goes into json
    *.parquet         a column `path`, `bytes` or `image` ({bytes, path}); `text` or `caption`; the rest as above
    """
    return _with_features(_read(source, root))


def _read(source: str, root: Path | None) -> Iterator[Item]:
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        parquet = sorted(path.glob("*.parquet"))
        return _parquet(parquet, root) if parquet else _folder(path)
    if not path.is_file():
        raise ValueError(f"{source}: no such file or folder")
    if suffix in (".csv", ".tsv"):
        return _rows(path, _csv(path, "\t" if suffix == ".tsv" else ","), root)
    if suffix in (".jsonl", ".ndjson"):
        return _rows(path, _jsonl(path), root)
    if suffix == ".parquet":
        return _parquet([path], root)
    raise ValueError(f"{source}: expected a folder, .csv, .tsv, .jsonl or .parquet file, or samples:image|audio|video")


def _with_features(items: Iterator[Item]) -> Iterator[Item]:
    listed: dict[Path, dict[str, dict[str, Path]]] = {}
    for item in items:
        if item.path is not None and item.ext in AUDIO:
            item.features = _features(item.path, listed)
        yield item


def _features(path: Path, listed: dict[Path, dict[str, dict[str, Path]]]) -> dict[str, Path]:
    """Feature files of a sound; every folder is listed once."""
    if path.parent not in listed:
        found = listed[path.parent] = {}
        for file in sorted(path.parent.glob("*.npy")):
            stem, _, name = file.name.removesuffix(".npy").rpartition(".")
            if stem and re.fullmatch(r"\w+", name, re.ASCII):
                found.setdefault(stem, {})[name] = file
    return listed[path.parent].get(path.stem, {})


def sample_items(name: str, split: str) -> list[Item]:
    """Items of one split of a sample set."""
    items = []
    for file in find_samples(name):
        if file.split == split:
            meta = {"licence": file.licence, "source": file.package}
            if isinstance(file, SampleClip):
                meta |= {"speaker": file.speaker, "language": file.language}
            camera = None
            if isinstance(file, SampleVideo) and file.camera is not None:
                camera = file.camera
                meta |= {"kind": "camera path over a photograph"}
            items.append(Item(file.name, file.path.suffix[1:].lower(), file.path, meta=meta, camera=camera))
    return items


def _folder(root: Path) -> Iterator[Item]:
    files = sorted(p for p in root.rglob("*") if p.suffix[1:].lower() in MEDIA and p.is_file())
    if not files:
        raise ValueError(f"{root}: no media files ({', '.join(MEDIA)}) below it")
    names = [file.relative_to(root) for file in files]
    classes: list[str] = []
    if all(len(name.parts) == 2 for name in names):
        classes = sorted({name.parts[0] for name in names})
    for file, name in zip(files, names, strict=True):
        meta = {"class": name.parts[0], "label": classes.index(name.parts[0])} if classes else {}
        yield Item(name.with_suffix("").as_posix(), file.suffix[1:].lower(), file, meta=meta)


def _csv(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}:{reader.line_num}: the row has not as many cells as the header")
            yield reader.line_num, row


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected an object with a `path`")
            yield number, row


def _rows(manifest: Path, rows: Iterator[tuple[int, dict[str, Any]]], root: Path | None) -> Iterator[Item]:
    for number, row in rows:
        if not row.get("path"):
            raise ValueError(f"{manifest}:{number}: no `path` column; name the media file of each row there")
        path = confined(str(row.pop("path")), manifest.parent, f"{manifest}:{number}", root)
        text = row.pop("text", None)
        key = str(row.pop("key", None) or _relative(path, manifest.parent))
        yield Item(key, path.suffix[1:].lower(), path, text=None if text is None else str(text), meta=row)


def _parquet(paths: list[Path], root: Path | None) -> Iterator[Item]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(f"{paths[0]}: reading Parquet needs `pip install pyarrow`") from None
    number = 0
    for path in paths:
        try:
            table = pq.ParquetFile(path)
        except Exception as error:
            raise ValueError(f"{path}: not a Parquet file ({error})") from None
        names = table.schema_arrow.names
        if not {"path", "bytes", "image"} & set(names):
            raise ValueError(f"{path}: no column `path`, `bytes` or `image`; it has {', '.join(names)}")
        for batch in table.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                yield _parquet_item(path, row, number, root)
                number += 1


def _parquet_item(source: Path, row: dict[str, Any], number: int, root: Path | None) -> Item:
    image = row.pop("image", None)
    if isinstance(image, dict):
        row = {**row, **{name: image[name] for name in ("path", "bytes") if image.get(name) is not None}}
    elif isinstance(image, bytes):
        row["bytes"] = image
    data, name = row.pop("bytes", None), row.pop("path", None)
    if data is None and not name:
        raise ValueError(f"{source}: row {number} has neither bytes nor a path")
    text = row.pop("text", None) if "text" in row else row.pop("caption", None)
    key = str(row.pop("key", None) or (Path(name).with_suffix("").as_posix() if name else f"{number:09d}"))
    path = None if data is not None else confined(str(name), source.parent, f"{source}: row {number}", root)
    ext = Path(name).suffix[1:].lower() if name else _sniff(data)
    return Item(key, ext, path, data, None if text is None else str(text), row)


def _sniff(data: bytes | None) -> str:
    """Extension from the first bytes, for rows that have no file name."""
    start = (data or b"")[:16]
    if start.startswith(b"\xff\xd8"):
        return "jpg"
    if start.startswith(b"\x89PNG"):
        return "png"
    if start[:4] == b"RIFF":
        return "webp" if start[8:12] == b"WEBP" else "wav"
    if start.startswith(b"fLaC"):
        return "flac"
    return "bin"


def _relative(path: Path, root: Path) -> str:
    stem = path.with_suffix("")
    return (stem.relative_to(root) if stem.is_relative_to(root) else Path(stem.name)).as_posix()
