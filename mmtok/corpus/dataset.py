"""Token shards as a map-style Dataset.

Legend: L codes of one item.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmtok.bitstream import unpack
from mmtok.corpus.shard import dtype_of, flat_ids
from mmtok.data.urls import confined
from mmtok.tokenizer import Tokenizer
from mmtok.types import PAD, Tokens


@dataclass(frozen=True)
class TokenItem:
    """One sample of a token shard.

    ids   int64 [L], each codebook in its own range; `vocabulary` of the dataset stands for "not sent"
    size  of the media, in pixels, frames or samples
    text  caption, "" when none was stored
    """

    key: str
    ids: Tensor
    size: tuple[int, ...]
    rate: float | None
    text: str


class TokenShards(Dataset[TokenItem]):
    """Samples of a folder that `mmtok tokenize` finished, in the order of its shards.

    folder     holds tokens.json
    tokenizer  needed for shards of .mmt files, and by `tokens`
    root       folder below which everything must lie, links followed; by default `folder`

    It pickles into any worker; files are opened when first read. ValueError names what is missing or damaged.
    """

    def __init__(
        self, folder: str | Path, tokenizer: Tokenizer | None = None, root: str | Path | None = None
    ) -> None:
        self.folder, self.tokenizer = Path(folder), tokenizer
        self.root = None if root is None else Path(root)
        path = self.folder / "tokens.json"
        if not path.is_file():
            raise ValueError(f"{path} is missing: run `mmtok tokenize` to its end; it goes on where it stopped")
        try:
            head = json.loads(path.read_text())
            version = head["format_version"]
            if head["format"] not in ("packed", "mmt"):
                raise ValueError(f"format {head['format']}")
            self.format, self.tokenizer_id = head["format"], head["tokenizer_id"]
            self.codebook_sizes = tuple(tuple(int(size) for size in sizes) for sizes in head["codebook_sizes"])
            self.names = [str(row["name"]) for row in head["shards"]]
            counts = np.array([row["samples"] for row in head["shards"]], dtype=np.int64)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: not a list of token shards ({error!r}); run `mmtok tokenize` again") from None
        if version != 1:
            raise ValueError(f"{path}: format version {version}, this mmtok reads 1")
        if counts.ndim != 1 or counts.min(initial=0) < 0:
            raise ValueError(f"{path}: numbers of samples that cannot be; run `mmtok tokenize` again")
        self.vocabulary = sum(sum(sizes) for sizes in self.codebook_sizes)
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self._records: dict[int, dict[str, Any]] = {}
        if self.format == "mmt" and tokenizer is None:
            raise ValueError(f"{self.folder} holds .mmt files: give the tokenizer that reads them")
        if tokenizer is not None and tokenizer.tokenizer_id != self.tokenizer_id:
            raise ValueError(f"{self.folder}: made by weights {self.tokenizer_id}, not {tokenizer.tokenizer_id}")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> TokenItem:
        row, at = self._find(index)
        ids = self._ids(row, at)
        text = row["texts"][at] if "texts" in row else ""
        return TokenItem(row["keys"][at], ids, tuple(row["sizes"][at]), row["rates"][at], text)

    def tokens(self, index: int) -> Tokens:
        """Item `index` as tokens of batch 1, ready for `decode`."""
        if self.tokenizer is None:
            raise ValueError(f"{self.folder}: give TokenShards the tokenizer to rebuild tokens")
        row, at = self._find(index)
        if self.format == "mmt":
            return unpack(self._bytes(row, *row["members"][at]), self.tokenizer)
        size = tuple(row["sizes"][at])
        shapes, coding = self.tokenizer.grid_shapes(size), self.tokenizer.coding
        grids = tuple(torch.zeros(1, *shape, dtype=torch.int64) for shape in shapes)
        keep = coding.masks(torch.tensor([row["keeps"][at]], dtype=torch.int64), shapes)
        rate = None if row["rates"][at] is None else torch.tensor([row["rates"][at]], dtype=torch.float64)
        sized = torch.tensor([size], dtype=torch.int64)
        like = Tokens(
            grids, keep, self.codebook_sizes, sized, rate, {}, coding, self.tokenizer_id, self.tokenizer.tables
        )
        ids = self._ids(row, at)
        flat = torch.full((1, sum(grid.numel() for grid in grids)), PAD, dtype=torch.int64)
        flat[0, : len(ids)] = ids.where(ids < self.vocabulary, PAD)
        return replace(Tokens.from_flat(flat, like), keep=keep)

    def _find(self, index: int) -> tuple[dict[str, Any], int]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        if shard not in self._records:
            path = self._path(f"{self.names[shard]}.json", "tokens.json")
            count = int(self.starts[shard + 1] - self.starts[shard])
            try:
                row = _checked(json.loads(path.read_text()), count, self.format)
            except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise ValueError(f"{path}: missing or damaged ({error!r}); run `mmtok tokenize` again") from None
            self._records[shard] = row | {"file": self._path(row["file"], path.name)}
        return self._records[shard], index - int(self.starts[shard])

    def _ids(self, row: dict[str, Any], at: int) -> Tensor:
        if self.format == "mmt":
            assert self.tokenizer is not None
            return torch.from_numpy(flat_ids(unpack(self._bytes(row, *row["members"][at]), self.tokenizer)))
        dtype = dtype_of(self.vocabulary)
        count, end = int(row["lengths"][at]), int(row["ends"][at])
        data = self._bytes(row, (end - count) * dtype.itemsize, count * dtype.itemsize)
        ids = np.frombuffer(data, dtype).astype(np.int64)
        if len(ids) and int(ids.max()) > self.vocabulary:
            raise ValueError(f"{row['file']}: ids beyond the vocabulary: the file is damaged")
        return torch.from_numpy(ids)

    def _bytes(self, row: dict[str, Any], offset: int, size: int) -> bytes:
        with open(row["file"], "rb") as file:
            if not 0 <= offset <= offset + size <= os.fstat(file.fileno()).st_size:
                raise ValueError(f"{row['file']} ends early: run `mmtok tokenize` again")
            file.seek(offset)
            return file.read(size)

    def _path(self, name: str, where: str) -> Path:
        return confined(name, self.folder, f"{self.folder / where}", self.root)


def _checked(row: dict[str, Any], count: int, format: str) -> dict[str, Any]:
    """The columns of a record that are read here, and `ends` of its ids. ValueError, KeyError, TypeError otherwise."""
    found: dict[str, Any] = {"file": str(row["file"]), "keys": list(map(str, row["keys"]))}
    found["rates"] = [None if rate is None else float(rate) for rate in row["rates"]]
    for name in ("lengths", "sizes", "keeps") + (("members",) if format == "mmt" else ()):
        column = np.array(row[name], dtype=np.int64)
        if column.ndim != (1 if name == "lengths" else 2) and count or column.min(initial=0) < 0:
            raise ValueError(f"column {name}")
        found[name] = column.tolist()
    if "texts" in row:
        found["texts"] = list(map(str, row["texts"]))
    if any(len(column) != count for name, column in found.items() if name != "file"):
        raise ValueError(f"columns that do not hold {count} samples")
    return found | {"ends": np.cumsum(np.array(found["lengths"], dtype=np.int64))}
