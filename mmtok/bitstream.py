"""Tokens <-> bytes: the `.mmt` file.

Layout of one item:
    "MMT"            3 bytes
    version | flags  1 byte: format version in the high 4 bits; flag 1: range coded, else packed; flag 2: has rate
    tokenizer id     4 bytes
    crc32            4 bytes, little-endian, over everything but itself
    size             one varint (value - 1) per media axis, then the rate as a little-endian float32 when flagged
    payload          keep symbols, side information, sent codes
The number of axes, the alphabets and the grid shapes follow from the tokenizer and the size, so they cost nothing: the
header of a 128 x 128 image is 14 bytes. The payload is one range-coded message (constriction), each code under the
integer table that was fitted on training data and is stored with the weights, or the same symbols bit-packed when
that is smaller. Tables are integers, so every machine decodes the same symbols.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmtok.code_tables import CodeTables, earlier
from mmtok.coder import Message, PackedReader, Prepared, RangeReader, write_packed, write_range
from mmtok.tokenizer import Tokenizer
from mmtok.types import Side, Tokens

MAGIC, VERSION = b"MMT", 1
RANGE_CODED, HAS_RATE = 1, 2
FIXED_HEADER = 12
MAX_FILE_BYTES = 1 << 28
MAX_CODES = 1 << 26  # codes of one item: an hour of 32-codebook audio at 100 Hz is a sixth of this


def save_tokens(path: str | os.PathLike[str], tokens: Tokens) -> int:
    """Writes the tokens of one item (batch 1) and returns the number of bytes; replaces an existing file at once."""
    data = pack(tokens)
    temporary = Path(f"{os.fspath(path)}.{os.getpid()}.part")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return len(data)


def load_tokens(path: str | os.PathLike[str], tokenizer: Tokenizer) -> Tokens:
    """The tokens in a `.mmt` file; ValueError names the file when it is damaged or made by other weights."""
    size = Path(path).stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{os.fspath(path)}: {size} bytes is more than a token file may hold ({MAX_FILE_BYTES})")
    try:
        return unpack(Path(path).read_bytes(), tokenizer)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def pack(tokens: Tokens) -> bytes:
    """The bytes of one item (batch 1)."""
    if len(tokens) != 1:
        raise ValueError(f"pack: one item at a time, got a batch of {len(tokens)}; use tokens[i]")
    if not tokens.grids:
        raise ValueError("pack: a continuous bottleneck has no codes, so no .mmt file")
    message = _message(tokens.to("cpu").validate())
    coded, packed = write_range(message), write_packed(message)
    payload = min(coded, packed, key=len)
    flags = (RANGE_CODED if payload is coded else 0) | (HAS_RATE if tokens.rate is not None else 0)
    head = MAGIC + bytes([VERSION << 4 | flags]) + bytes.fromhex(tokens.tokenizer_id or "00000000")
    body = b"".join(_varint(n - 1) for n in tokens.size[0].tolist())
    if tokens.rate is not None:
        body += struct.pack("<f", float(tokens.rate[0]))
    body += payload
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def unpack(data: bytes, tokenizer: Tokenizer) -> Tokens:
    """The tokens of `pack`; ValueError for anything but an undamaged file of this tokenizer."""
    head, crc, body = data[:8], data[8:FIXED_HEADER], data[FIXED_HEADER:]
    if data[:3] != MAGIC or len(data) < FIXED_HEADER:
        raise ValueError("not a .mmt token file")
    version, flags = data[3] >> 4, data[3] & 15
    if version != VERSION:
        raise ValueError(f"format version {version}, this mmtok reads {VERSION}")
    if struct.unpack("<I", crc)[0] != zlib.crc32(head + body):
        raise ValueError("damaged: the checksum does not match")
    made_by = head[4:8].hex()
    own = tokenizer.tokenizer_id or "00000000"
    if made_by != own:
        raise ValueError(f"made by weights {made_by}, this tokenizer is {own}")
    size, at = [], 0
    for _ in tokenizer.stride:
        value, at = _read_varint(body, at)
        size.append(value + 1)
    rate = None
    if flags & HAS_RATE:
        if len(body) < at + 4:
            raise ValueError("damaged: the header ends early")
        rate = torch.tensor(struct.unpack_from("<f", body, at), dtype=torch.float64)
        at += 4
    own_size = tokenizer.media_size(tuple(size), None if rate is None else float(rate))
    shapes = tokenizer.grid_shapes(own_size)
    if sum(math.prod(shape) for shape in shapes) > MAX_CODES:
        raise ValueError(f"size {size} stands for more than {MAX_CODES} codes: refused")
    reader = RangeReader(body[at:]) if flags & RANGE_CODED else PackedReader(body[at:])
    return _read(reader, tokenizer, tuple(size), rate, made_by if tokenizer.tokenizer_id else "")


def _message(tokens: Tokens) -> Message:
    """What is written, in order: arrays of symbols with an alphabet size or a table each."""
    message: Message = []
    symbols = tokens.coding.symbols(tokens.keep, tokens.shapes)[0].tolist()
    for symbol, size in zip(symbols, tokens.coding.sizes(tokens.shapes), strict=True):
        message.append((np.array([symbol]), size))
    for side in tokens.side.values():
        if isinstance(side.values, tuple):
            message.append((np.array([len(side.values[0])]), 1 << 16))
            message.append((np.frombuffer(side.values[0], np.uint8).astype(np.int64), 256))
        else:
            message.append((side.values[0].flatten().numpy(), side.levels))
    for index, (grid, mask, sizes) in enumerate(zip(tokens.grids, tokens.keep, tokens.codebook_sizes, strict=True)):
        mask = mask.expand_as(grid)
        joint = _Joint(tokens.tables, index, sizes)
        if joint.books:
            message.append(joint.message(grid, mask))
        for k, size in enumerate(sizes):
            if k not in joint.books:
                table = None if tokens.tables is None else tokens.tables.plain[index][k][:size].numpy()
                message.append((grid[0, k][mask[0, k]].numpy(), size if table is None else table))
    return message


def _read(
    reader: RangeReader | PackedReader, tokenizer: Tokenizer, size: tuple[int, ...], rate: Tensor | None, made_by: str
) -> Tokens:
    own_size = tokenizer.media_size(size, None if rate is None else float(rate))
    shapes, coding = tokenizer.grid_shapes(own_size), tokenizer.coding
    symbols = [int(reader.read(1, n)[0]) for n in coding.sizes(shapes)]
    keep = coding.masks(torch.tensor([symbols], dtype=torch.int64), shapes)
    side: dict[str, Side] = {}
    for name, (shape, levels) in tokenizer.side_shapes(own_size).items():
        if shape is None:
            length = int(reader.read(1, 1 << 16)[0])
            side[name] = Side((reader.read(length, 256).astype(np.uint8).tobytes(),))
        else:
            values = torch.from_numpy(reader.read(math.prod(shape), levels)).view(1, *shape)
            side[name] = Side(values, levels)
    grids = []
    books = tokenizer.quantizer.codebook_sizes
    for index, (grid_shape, mask, sizes) in enumerate(zip(shapes, keep, books, strict=True)):
        grid = torch.zeros(1, *grid_shape, dtype=torch.int64)
        mask = mask.expand_as(grid)
        joint = _Joint(tokenizer.tables, index, sizes)
        if joint.books:
            joint.read(reader, grid, mask)
        for k, alphabet in enumerate(sizes):
            if k not in joint.books:
                table = None if tokenizer.tables is None else tokenizer.tables.plain[index][k][:alphabet].numpy()
                codes = reader.read(int(mask[0, k].sum()), alphabet if table is None else table)
                grid[0, k][mask[0, k]] = torch.from_numpy(codes)
        grids.append(grid)
    reader.finish()
    sized = torch.tensor([size], dtype=torch.int64)
    return Tokens(tuple(grids), keep, books, sized, rate, side, coding, made_by, tokenizer.tables).validate()


class _Joint:
    """The codebooks of a grid that are written position by position, since one looks at another."""

    def __init__(self, tables: CodeTables | None, index: int, sizes: tuple[int, ...]) -> None:
        self.books = [] if tables is None else tables.joint(index)
        self.contexts = [None if tables is None else tables.of(index, k) for k in self.books]
        self.plain = [None if tables is None else tables.plain[index][k, : sizes[k]] for k in self.books]
        self._ready: dict[tuple[int, int], Prepared] = {}

    def alphabet(self, at: int, row: int) -> Prepared:
        """Weights of books[at]: those of a row of its context, if it has one."""
        if (at, row) not in self._ready:
            context = self.contexts[at]
            weights = self.plain[at] if context is None else context.weights[row]
            self._ready[at, row] = Prepared(weights.numpy())  # type: ignore[union-attr]
        return self._ready[at, row]

    def message(self, grid: Tensor, mask: Tensor) -> tuple[np.ndarray, list[Prepared]]:
        """Symbols of [1, K, *S] and an alphabet each."""
        zeros = torch.zeros_like(grid[0, 0])
        rows = torch.stack([zeros if c is None else c.rows(grid, mask)[0] for c in self.contexts], -1)
        books = torch.tensor(self.books)
        sent = mask[0, books].movedim(0, -1)
        which = torch.arange(len(books)).expand(sent.shape)[sent]
        alphabets = [self.alphabet(*pair) for pair in zip(which.tolist(), rows[sent].tolist(), strict=True)]
        return grid[0, books].movedim(0, -1)[sent].numpy(), alphabets

    def read(self, reader: RangeReader | PackedReader, grid: Tensor, mask: Tensor) -> None:
        """Fills the codes that `message` wrote into grid [1, K, *S]."""
        codes = grid[0].flatten(1).numpy()  # a view
        sent = mask[0].flatten(1).numpy()
        places = torch.arange(codes.shape[1]).view(1, 1, *grid.shape[2:])
        everywhere = torch.ones_like(places, dtype=torch.bool)
        looks = {}
        for k, c in zip(self.books, self.contexts, strict=True):
            if c is not None:
                before = earlier(places, everywhere, 0, c.axis).flatten().numpy()
                looks[k] = (c.source, before, c.classes.numpy(), len(c.weights) - 1)
        for place in range(codes.shape[1]):
            for at, k in enumerate(self.books):
                if not sent[k, place]:
                    continue
                row = 0
                if k in looks:
                    source, before, classes, none = looks[k]
                    there = before[place]
                    row = int(classes[codes[source, there]]) if there >= 0 and sent[source, there] else none
                codes[k, place] = reader.read_one(self.alphabet(at, row))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            raise ValueError("damaged: the header ends early")
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("damaged: a size in the header is too large")
