"""`mmtok shards check`: read every sample of a folder of tars, say what is wrong, and write their index."""

from __future__ import annotations

import io
import multiprocessing
import sys
import tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from webdataset.tariterators import base_plus_ext

from mmtok.data.bad import BadSample
from mmtok.data.index import NAME, Shard, file_sha256, make_shard, parse_index, save_index
from mmtok.data.media import AUDIO, IMAGES, MEDIA, VIDEOS, examine
from mmtok.data.workers import follow_parent

MAX_MEMBERS = 10_000_000
MAX_MEMBER_BYTES = 256 << 20
SIDES = (1, 64, 128, 256, 512, 1024, 2048, 4096)
MAX_HEADER = 1 << 14  # bytes of an .npy header that are looked at
PICKLES = ("pkl", "pickle", "pyd", "pth", "pt", "ckpt", "joblib", "dill")
SECONDS = (0, 1, 2, 5, 10, 30, 60, 600)


@dataclass
class CheckReport:
    """What a check found.

    bad        (shard, key, reason) of samples that cannot be used
    problems   one line each about shards: cut tars, keys that are not adjacent, doubled members or keys
    histogram  images and videos by short side, lower edges in pixels
    lengths    audio by length, lower edges in seconds; hours is their sum
    wrote      an index.json was written
    """

    folder: Path
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    bad: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    histogram: dict[int, int] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    hours: float = 0.0
    wrote: bool = False


def check_shards(folder: Path, rewrite: bool = False, workers: int = 1, progress: bool = True) -> CheckReport:
    """Decode every image, sound and video of folder/*.tar; write index.json where there is none, or with `rewrite`.

    An index that disagrees with the shards is a problem, not overwritten without `rewrite`. Bad
    samples stay in the index: training skips and counts them.
    """
    tars = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not tars:
        packed = sorted(p.name for pattern in ("*.tar.*", "*.tgz") for p in folder.glob(pattern))
        hint = f"; {packed[0]} is compressed, unpack it first" if packed else ""
        raise ValueError(f"{folder}: no .tar shards there{hint}")
    old = None
    if (folder / NAME).is_file() and not rewrite:
        old = parse_index((folder / NAME).read_bytes(), str(folder / NAME))
    report, shards, seen, doubled = CheckReport(folder), [], set[str](), 0
    sides: Counter[int] = Counter()
    lengths: Counter[int] = Counter()
    # spawn: forking a process that already runs torch threads can deadlock
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=follow_parent) as pool:
        results = pool.map(scan_shard, tars) if workers > 1 else map(scan_shard, tars)
        for path, (shard, bad, problems) in zip(tars, tqdm(
            results, total=len(tars), desc=str(folder), unit=" shards", disable=not (progress and sys.stderr.isatty())
        ), strict=True):
            report.bad += [(path.name, key, reason) for key, reason in bad]
            report.problems += [f"{path.name}: {problem}" for problem in problems]
            if old is not None:
                report.problems += _compare(old.get(path.name), shard)
            keys = {shard.key(row) for row in range(len(shard))}
            doubled += len(keys & seen)
            seen |= keys
            sound = _has(shard, AUDIO) & ~_has(shard, IMAGES) & (shard.sizes[:, 0] > 0)
            for seconds in (shard.sizes[sound, 1] / shard.sizes[sound, 0]).tolist():
                lengths[max(edge for edge in SECONDS if edge <= seconds)] += 1
                report.hours += seconds / 3600
            for side in shard.sizes[~sound].min(1, initial=1 << 30).tolist():
                if side:
                    sides[max(edge for edge in SIDES if edge <= side)] += 1
            shards.append(shard)
    if old is not None:
        gone = sorted(set(old) - {path.name for path in tars})
        report.problems += [f"{NAME} lists {name}, which is not there" for name in gone]
    if doubled:
        report.problems.append(f"{doubled} keys occur in more than one shard")
    report.shards, report.samples = len(shards), sum(len(s) for s in shards)
    report.bytes, report.histogram = sum(s.bytes for s in shards), dict(sorted(sides.items()))
    report.lengths = dict(sorted(lengths.items()))
    if old is None and report.samples:
        save_index(folder, shards)
        report.wrote = True
    return report


def scan_shard(path: Path) -> tuple[Shard, list[tuple[str, str]], list[str]]:
    """Index of one tar, its bad samples as (key, reason), and problems of the tar itself.

    Members of one key are gathered wherever they lie: reading goes by offset, so order does not matter to us,
    but it does to streaming readers, hence the report.
    """
    total = path.stat().st_size
    members: dict[str, dict[str, tuple[int, int]]] = {}
    problems: list[str] = []
    apart: set[str] = set()
    ignored: Counter[str] = Counter()
    doubled, last = 0, None
    for name, offset, size in _tar_members(path, problems):
        key, ext = base_plus_ext(name)
        if key is None:
            ignored["without extension"] += 1
            continue
        ext = ext.lower()
        if offset + size > total:
            problems.append(f"{name} is cut off by the end of the file")
            continue
        if (kind := ext.rpartition(".")[2]) in PICKLES or (kind == "npy" and _holds_objects(path, offset, size)):
            ignored[f"that can hold pickles (.{kind})"] += 1
            continue
        if key in members and key != last:
            apart.add(key)
        last = key
        if ext in members.setdefault(key, {}):
            doubled += 1
            continue
        members[key][ext] = (offset, size)
    if apart:
        problems.append(f"members of {len(apart)} keys are not adjacent (first {min(apart)}); streams would split them")
    if doubled:
        problems.append(f"{doubled} members occur twice; the first is used")
    keys, rows, sizes, bad = [], [], [], []
    with open(path, "rb") as file:
        for key, row in members.items():
            media = [ext for ext in (*IMAGES, *AUDIO, *VIDEOS) if ext in row]
            size = (0, 0)
            if media:
                offset, length = row[media[0]]
                try:
                    if length > MAX_MEMBER_BYTES:
                        raise BadSample("too_large", f"member of {length} bytes")
                    file.seek(offset)
                    size = examine(media[0], file.read(length))
                except BadSample as error:
                    bad.append((key, str(error)))
            elif not any(ext in row for ext in MEDIA):
                bad.append((key, f"no_media: only {', '.join(sorted(row))}"))
            keys.append(key)
            rows.append(row)
            sizes.append(size)
    problems += [f"{count} members {why} ignored" for why, count in ignored.items()]
    return make_shard(path.name, total, file_sha256(path), keys, rows, sizes), bad, problems


def _tar_members(path: Path, problems: list[str]):  # type: ignore[no-untyped-def]
    """(name, offset, size) of regular files of an uncompressed tar; what stops the walk is added to problems."""
    others = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for count, member in enumerate(tar):
                tar.members = []  # type: ignore[attr-defined]  # or memory grows with the shard
                if count >= MAX_MEMBERS:
                    problems.append(f"over {MAX_MEMBERS} members; the rest is ignored")
                    break
                if member.isreg() and not member.sparse:
                    yield member.name, member.offset_data, member.size
                elif not member.isdir():
                    others += 1
    except (tarfile.TarError, EOFError, OSError) as error:
        problems.append(f"the tar cannot be read to its end ({error}); samples before that are kept")
    if others:
        problems.append(f"{others} links or special files ignored")


def _holds_objects(path: Path, offset: int, size: int) -> bool:
    """Whether an .npy member is pickled: an array of Python objects, by its header."""
    with open(path, "rb") as file:
        file.seek(offset)
        header = io.BytesIO(file.read(min(size, MAX_HEADER)))
    try:
        first = np.lib.format.read_magic(header) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        return bool(read(header)[2].hasobject)
    except Exception:  # whatever it is, nothing reads it
        return False


def _has(shard: Shard, extensions: tuple[str, ...]) -> NDArray[np.bool_]:
    """bool [n]: samples with a member among these."""
    found = np.zeros(len(shard), dtype=bool)
    for ext in extensions:
        if ext in shard.members:
            found |= shard.members[ext][:, 0] >= 0
    return found


def _compare(old: Shard | None, new: Shard) -> list[str]:
    if old is None:
        return [f"{new.url}: not in {NAME}; run with --rewrite"]
    same = old.sha256 == new.sha256 and np.array_equal(old.keys, new.keys) and np.array_equal(old.sizes, new.sizes)
    same = same and old.members.keys() == new.members.keys()
    if same and all(np.array_equal(old.members[ext], new.members[ext]) for ext in old.members):
        return []
    return [f"{new.url}: differs from {NAME}; run with --rewrite if the shard is right"]
