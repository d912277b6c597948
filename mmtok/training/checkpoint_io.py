"""Checkpoint files that are whole or not there, and a manifest that tells a damaged one from a good one.

    <folder>/last.ckpt, previous.ckpt, step_000001000.ckpt
    <folder>/manifest.json    [{"step": 1000, "bytes": 123, "sha256": "..."}, ...]: every file that was written whole
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from mmtok.data.index import file_sha256

LAST, PREVIOUS, MANIFEST = "last.ckpt", "previous.ckpt", "manifest.json"
KEPT = 1000  # rows; far more than files that are kept


class AtomicIO(TorchCheckpointIO):
    """torch.save into a temporary file, fsync, manifest, rename: a full disk or a kill leaves the old files alone.

    The manifest gets its row before the rename, so that at any moment the file in place has one. A last.ckpt that is
    replaced becomes previous.ckpt, once the new one is safely written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        stream: _Hashing | None = None
        try:
            with open(temporary, "wb") as file:
                stream = _Hashing(file)
                torch.save(checkpoint, cast(IO[bytes], stream))
                file.flush()
                os.fsync(file.fileno())
            row = {"step": int(checkpoint.get("global_step", 0)), "bytes": stream.size, "sha256": stream.digest()}
            _write_manifest(path.parent, [row, *(r for r in read_manifest(path.parent) if r != row)][:KEPT])
            if path.name == LAST and path.is_file():
                link(path, path.with_name(PREVIOUS))
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:
            # torch wraps what the stream raised; the stream knows
            cause = error if isinstance(error, OSError) else stream.error if stream is not None else None
            if cause is None:
                raise
            raise OSError(
                f"{path} could not be written ({cause.strerror}); the checkpoints before it are intact. Make room and "
                "go on with --ckpt_path last"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Tensors and plain values only, whatever is asked: nothing is unpickled."""
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            text = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{path} is not a whole checkpoint of tensors and plain values ({text}); try previous.ckpt beside it"
            ) from None


def latest(folder: Path, mend: bool = False) -> Path | None:
    """The newest whole checkpoint of a run's `checkpoints` folder, or None when there never was one.

    A file that is cut or changed is passed over; with `mend` that is said on stderr, and the file is set aside as
    `<name>.damaged`. ValueError when no file is whole.
    """
    names = [LAST, PREVIOUS, *sorted((p.name for p in folder.glob("step_*.ckpt")), reverse=True)]
    damaged: list[tuple[Path, str]] = []
    for path in (folder / name for name in names):
        if not path.is_file():
            continue
        problem = damage(path)
        if problem is not None:
            damaged.append((path, problem))
            continue
        for bad, why in damaged if mend else []:
            print(f"mmtok train: {bad} is damaged ({why}): set aside, going on from {path.name}", file=sys.stderr)
            bad.replace(bad.with_name(f"{bad.name}.damaged"))
        return path
    if damaged:
        text = "; ".join(f"{bad} is damaged ({why})" for bad, why in damaged)
        raise ValueError(f"{text}, and no other is whole: start a new run with another --name")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None. Files that have no manifest are judged by opening them."""
    rows, size = read_manifest(path.parent), path.stat().st_size
    if not rows:
        try:
            torch.load(path, map_location="meta", weights_only=True)
        except Exception as error:
            return (str(error) or type(error).__name__).splitlines()[0]
        return None
    if not any(row["bytes"] == size for row in rows):
        return f"{size} bytes, {MANIFEST} knows no such file"
    digest = file_sha256(path)
    if not any(row["bytes"] == size and row["sha256"] == digest for row in rows):
        return f"its sha256 is not in {MANIFEST}"
    return None


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Rows, newest first; empty when there is no readable manifest."""
    try:
        rows = json.loads((folder / MANIFEST).read_text())
        return [row for row in rows if {"step", "bytes", "sha256"} <= set(row)]
    except (OSError, ValueError, TypeError):
        return []


def link(source: Path, target: Path) -> None:
    """A second name for a file, put in place in one move; a copy where links are not possible."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def sweep(folder: Path) -> None:
    """Removes what killed processes left half written."""
    for path in folder.glob(".*.ckpt.*"):
        path.unlink(missing_ok=True)


class _Hashing:
    """A stream that knows the size and sha256 of what passed, and the error that stopped it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(data)
        self.size += written
        return written

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = error
            raise

    def digest(self) -> str:
        return self._hash.hexdigest()


def _write_manifest(folder: Path, rows: list[dict[str, Any]]) -> None:
    temporary = folder / f".{MANIFEST}.{os.getpid()}"
    try:
        with open(temporary, "w") as stream:
            json.dump(rows, stream, indent=0)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, folder / MANIFEST)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """A rename lasts through a power cut only when the folder is synced too."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
