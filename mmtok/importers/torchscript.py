"""Weights out of a TorchScript archive without running any of it.

An archive is a zip file whose `data.pkl` describes modules as objects of classes called `__torch__...` and whose
`data/` holds the bytes of their tensors. `torch.jit.load` would compile and may run the code that lies beside them;
here the pickle may only build containers and tensors, and anything else in it is an error.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")


class _Object:
    """A module of the archive: its attributes by name."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Builds tensors, containers and `_Object`s; refuses everything else."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Object
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return _first
        raise pickle.UnpicklingError(f"{module}.{name} has no place among weights")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        return torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Every tensor of the archive's modules under its dotted name; ValueError when the file holds anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(names) != 1:
                raise ValueError(f"{path}: no TorchScript archive (it has no data.pkl)")
            content = _Reader(archive, names[0].split("/")[0]).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: no TorchScript archive of weights: {' '.join(str(error).split())[:160]}") from None
    state: dict[str, Tensor] = {}
    _collect(content, "", state)
    return state


def _collect(value: Any, name: str, state: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        state[name] = value
    elif isinstance(value, _Object):
        for key, part in value.attributes.items():
            _collect(part, f"{name}.{key}" if name else key, state)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor of its own over a flat storage."""
    return storage.as_strided(size, stride, offset).clone()


def _first(value: Any, *_: Any) -> Any:
    return value
