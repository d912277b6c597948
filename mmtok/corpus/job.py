"""What is asked of a corpus tokenization, and the place where it is written down.

A folder of token shards:
    job.json           what made them: tokenizer id and options; another job is refused here
    <shard>.bin|.tar   codes of one media shard
    <shard>.json       its record, renamed into place last: a shard with a record is done
    <shard>.usage.npy  how often each code was sent
    tokens.json        all shards, once all are done        summary.json   throughput, bits, usage
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mmtok.data.index import safe_key

FORMAT_VERSION = 1
Format = Literal["packed", "mmt"]


@dataclass(frozen=True)
class Job:
    """One corpus, one tokenizer. Small and picklable: it travels to every worker.

    out         folder of the token shards
    model       what `mmtok.load` takes
    format      "packed": ids as a flat array, for language models; "mmt": a tar of .mmt files, for storage and decoding
    size        side of images in pixels; None takes the tokenizer's own
    seconds     only the first so many seconds of audio; None takes clips whole
    num_tokens, num_quantizers  length of what is sent, as in `Tokenizer.encode`
    text        also store captions
    device      "cpu", "cuda", ...; "cuda" takes the local process's own
    """

    out: str
    model: str
    format: Format = "packed"
    size: int | None = None
    seconds: float | None = None
    num_tokens: int | None = None
    num_quantizers: int | None = None
    text: bool = False
    batch_size: int = 32
    loader_workers: int = 0
    max_bad_fraction: float = 0.01
    device: str = "cpu"

    @property
    def folder(self) -> Path:
        return Path(self.out).expanduser()

    def what(self, tokenizer_id: str) -> dict[str, Any]:
        """All that decides over the bytes of the output."""
        kept = ("format", "size", "seconds", "num_tokens", "num_quantizers", "text", "batch_size")
        return {"format_version": FORMAT_VERSION, "tokenizer_id": tokenizer_id} | {k: asdict(self)[k] for k in kept}


def begin(job: Job, tokenizer_id: str) -> None:
    """Creates the folder, or makes sure that it belongs to the same job. ValueError otherwise."""
    job.folder.mkdir(parents=True, exist_ok=True)
    path, wanted = job.folder / "job.json", job.what(tokenizer_id)
    if not path.is_file():
        if any(not p.name.startswith(".") for p in job.folder.iterdir()):
            raise ValueError(f"{job.folder}: not empty, and not a folder of token shards; choose another OUT")
        write(path, json.dumps(wanted, indent=1).encode())
    found = json.loads(path.read_text())
    for key in sorted(set(wanted) | set(found)):
        if found.get(key) != wanted.get(key):
            raise ValueError(
                f"{job.folder} was begun with {key}={found.get(key)}, now it is {wanted.get(key)}; choose another OUT"
            )


def shard_names(urls: Iterable[str]) -> dict[str, str]:
    """Output name -> address: the file's own name, made unique with its folder where two are alike."""
    found: dict[str, str] = {}
    for url in urls:
        parts = url.rstrip("/").split("/")
        name = safe_key(parts[-1].removesuffix(".tar"))
        if name in found:
            name = safe_key("-".join(parts[-2:]).removesuffix(".tar"))
        if name in found:
            raise ValueError(f"{url} and {found[name]} would have the same name; rename one")
        found[name] = url
    return found


def record(job: Job, name: str) -> dict[str, Any] | None:
    """The record of a finished shard, or None. A data file of another size than recorded counts as not done."""
    try:
        row = json.loads((job.folder / f"{name}.json").read_text())
        ours = row["name"] == name and row["file"] in (f"{name}.bin", f"{name}.tar")
        whole = ours and (job.folder / row["file"]).stat().st_size == row["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return row if whole else None


def write(path: Path, data: bytes) -> None:
    """Beside its place, synced, renamed; the temporary name is this process's own, on whatever host."""
    temporary = partial(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def partial(path: Path) -> Path:
    """A neighbour's name that no other process uses."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
