"""Symbols <-> bytes: range coding under integer tables, and plain bit-packing.

A message is a list of (symbols int64 [n], alphabet), where the alphabet is an int (all symbols equally likely), a
table of positive int32 weights, or a list of tables, one a symbol. Both writers need only the message; the readers are
asked for the same alphabets, which may follow from what they have read.
"""

from __future__ import annotations

import constriction
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Symbols = NDArray[np.int64]
Alphabet = int | NDArray[np.int32]

TABLE_TOTAL = 1 << 20
_CUT = 1 << 13  # bytes; of a longer message the last few do not matter


class Prepared:
    """A table of positive weights, made ready once for symbols that are coded one by one."""

    def __init__(self, table: NDArray[np.int32]) -> None:
        self.size, self.model = len(table), _model(table)


Message = list[tuple[Symbols, Alphabet | list[Prepared]]]


def fit_table(counts: Tensor) -> Tensor:
    """int32 [V] weights of a histogram int64 [V] of training codes: every code gets at least 1.

    Half a count is added to each code (Krichevsky-Trofimov), so that a code never seen in training can still be sent.
    """
    return (code_shares(counts) * TABLE_TOTAL).round().clamp(min=1).to(torch.int32)


def code_shares(counts: Tensor) -> Tensor:
    """float64 [V] probabilities of a histogram, half a count added to each code."""
    return (counts.double() + 0.5) / (counts.sum() + 0.5 * len(counts))


def table_bits(table: Tensor) -> Tensor:
    """float64 [*, V]: bits each code costs under integer tables."""
    return -(table.double() / table.double().sum(-1, keepdim=True)).log2()


def write_range(message: Message) -> bytes:
    """One range-coded message, cut to the shortest bytes that still decode."""
    encoder = constriction.stream.queue.RangeEncoder()
    for symbols, alphabet in message:
        if isinstance(alphabet, list):
            for symbol, one in zip(symbols.tolist(), alphabet, strict=True):
                if one.size > 1:
                    encoder.encode(symbol, one.model)
        elif len(symbols) and _size(alphabet) > 1:
            encoder.encode(symbols.astype(np.int32), _model(alphabet))
    return _shortest(encoder.get_compressed().astype(">u4").tobytes(), message)


def write_packed(message: Message) -> bytes:
    """Every symbol in ceil(log2(alphabet)) bits, most significant first."""
    value, length = 0, 0
    parts: list[str] = []
    for symbols, alphabet in message:
        sizes = [one.size for one in alphabet] if isinstance(alphabet, list) else [_size(alphabet)] * len(symbols)
        widths = map(_width, sizes)
        parts.extend(format(int(s), f"0{width}b") for s, width in zip(symbols, widths, strict=True) if width)
    bits = "".join(parts)
    length = -(-len(bits) // 8)
    value = int(bits.ljust(length * 8, "0"), 2) if bits else 0
    return value.to_bytes(length, "big")


class RangeReader:
    """Reads what `write_range` wrote."""

    def __init__(self, data: bytes) -> None:
        # bytes that were cut are zeros; two more words, since the decoder may look ahead
        padded = data + bytes(-len(data) % 4 + 8)
        self._decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def read(self, count: int, alphabet: Alphabet) -> Symbols:
        """The next symbols, int64 [count]; ValueError when the bytes are no message."""
        if not count or _size(alphabet) == 1:
            return np.zeros(count, np.int64)
        try:
            return np.asarray(self._decoder.decode(_model(alphabet), count)).astype(np.int64)
        except (AssertionError, ValueError) as error:
            raise ValueError(f"damaged payload: {error}") from None

    def read_one(self, alphabet: Prepared) -> int:
        """The next symbol."""
        if alphabet.size == 1:
            return 0
        try:
            return int(self._decoder.decode(alphabet.model))
        except (AssertionError, ValueError) as error:
            raise ValueError(f"damaged payload: {error}") from None

    def finish(self) -> None:
        """A range coder cannot tell where its message ends; the checksum covers that."""


class PackedReader:
    """Reads what `write_packed` wrote."""

    def __init__(self, data: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8))
        self._at = 0

    def read(self, count: int, alphabet: Alphabet) -> Symbols:
        """The next symbols, int64 [count]; ValueError when the bytes end early or a symbol is out of range."""
        width = _width(_size(alphabet))
        end = self._at + count * width
        if end > len(self._bits):
            raise ValueError("damaged payload: it ends early")
        bits = self._bits[self._at : end].reshape(count, width).astype(np.int64)
        self._at = end
        symbols = bits @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64)) if width else np.zeros(count, np.int64)
        if count and symbols.max() >= _size(alphabet):
            raise ValueError(f"damaged payload: symbol {symbols.max()} of an alphabet of {_size(alphabet)}")
        return symbols

    def read_one(self, alphabet: Prepared) -> int:
        """The next symbol."""
        return int(self.read(1, alphabet.size)[0])

    def finish(self) -> None:
        """ValueError when bytes are left over."""
        if len(self._bits) - self._at >= 8:
            raise ValueError("damaged payload: bytes are left over")


def _size(alphabet: Alphabet) -> int:
    return alphabet if isinstance(alphabet, int) else len(alphabet)


def _width(size: int) -> int:
    return (size - 1).bit_length()


def _model(alphabet: Alphabet) -> object:
    if isinstance(alphabet, int):
        return constriction.stream.model.Uniform(alphabet)
    # ratios of integers below 2^53 are the same float64 everywhere
    weights = alphabet.astype(np.float64)
    return constriction.stream.model.Categorical(weights / weights.sum(), perfect=False)


def _shortest(data: bytes, message: Message) -> bytes:
    """The fewest leading bytes, the last one perhaps raised by one, that decode to the message.

    The coder flushes whole 32-bit words although any number inside its final interval would do; for a code of a
    hundred bytes the difference is 2 to 3 % of the file.
    """
    best = data
    if len(data) > _CUT:
        return best
    for length in range(len(data) - 1, max(-1, len(data) - 9), -1):
        head = int.from_bytes(data[:length], "big")
        options = [head, head + 1] if head + 1 < 1 << 8 * length else [head]
        cut = next((c for v in options if _decodes(c := v.to_bytes(length, "big"), message)), None)
        if cut is None:
            break
        best = cut
    return best


def _decodes(data: bytes, message: Message) -> bool:
    reader = RangeReader(data)
    try:
        return all(
            [reader.read_one(one) for one in alphabet] == symbols.tolist() if isinstance(alphabet, list)
            else np.array_equal(reader.read(len(symbols), alphabet), symbols)
            for symbols, alphabet in message
        )
    except ValueError:
        return False
