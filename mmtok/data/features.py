"""Precomputed features beside a sound: `key.<name>.npy` float [F, E], cut with the clip.

What a frozen model hears of a clip is computed once, and neither teacher nor frontend runs while training.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmtok.data.bad import BadSample

SLACK = 2  # frames that a file may lack at its end: models without padding give one fewer than ceil(samples / hop)


def read_rows(name: str, data: bytes, start: int, count: int, total: int, hop: int) -> NDArray[np.float32]:
    """float32 [ceil(count / hop), E]: the frames of samples start to start + count; a last one that is missing repeats.

    total  samples of the whole clip, whose frames the file holds
    hop    samples a frame; `start` is a multiple of it
    Raises BadSample (features): absent, no array of floats [F, E], not finite, of another length. Nothing is unpickled.
    """
    if not data:
        raise BadSample("features", f"no member {name}.npy")
    found = read_array(name, data)
    first, rows, wanted = start // hop, -(-count // hop), -(-total // hop)
    if not wanted - SLACK <= len(found) <= 1.1 * wanted + SLACK:
        raise BadSample("features", f"{name}.npy: {len(found)} frames, the clip has {wanted} of {hop} samples")
    cut = found[np.minimum(np.arange(first, first + rows), len(found) - 1)].astype(np.float32)
    if not np.isfinite(cut).all():
        raise BadSample("features", f"{name}.npy holds NaN or infinity")
    return cut


def read_array(name: str, data: bytes) -> NDArray[np.floating]:
    """The array [F, E] of an .npy file, whose header may claim nothing that the file does not hold.

    Raises BadSample (features): no array of floats [F, E]. Nothing is unpickled.
    """
    stream = io.BytesIO(data)
    try:
        first = np.lib.format.read_magic(stream) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, columns, dtype = read(stream)
    except Exception as error:  # the header is a Python literal, and numpy raises what its parsers do
        raise BadSample("features", f"{name}.npy: {error}") from None
    if len(shape) != 2 or dtype.kind != "f" or min(shape) < 1:
        raise BadSample("features", f"{name}.npy: expected floats [frames, channels], got {dtype} {list(shape)}")
    if shape[0] * shape[1] * dtype.itemsize != len(data) - stream.tell():
        raise BadSample("features", f"{name}.npy: {len(data)} bytes do not hold {list(shape)}")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if columns else "C")


def joined(name: str, items: list[NDArray[np.float32]]) -> Tensor:
    """float32 [B, F, E], zeros behind shorter ones. ValueError where their widths differ."""
    widths = {rows.shape[1] for rows in items}
    if len(widths) > 1:
        raise ValueError(f"data.features: {name}.npy has {sorted(widths)} channels in one batch; make them alike")
    out = np.zeros((len(items), max(len(rows) for rows in items), widths.pop()), np.float32)
    for into, rows in zip(out, items, strict=True):
        into[: len(rows)] = rows
    return torch.from_numpy(out)
