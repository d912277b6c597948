"""Which implementation serves which device: CPU C++ -> torch, CUDA Triton -> torch.

The C++ library has four code paths (avx512bf16, avx512, avx2, portable) and takes the widest the processor runs. The
environment variable MMTOK_KERNELS, or `forced(...)` for a block of code, names one of them, or torch, instead.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch

from mmtok.kernels import native, reference

PATHS = (*native.NAMES, "torch")
_forced: str | None = None
_told: set[str] = set()


@dataclass(frozen=True)
class Status:
    """What runs on each kind of device, and why."""

    cpu: str
    cpu_reason: str
    cuda: str
    cuda_reason: str


def cpu() -> ModuleType:
    """The module that serves CPU tensors."""
    path, reason = cpu_path()
    if path == "torch":
        if wanted() is None:
            _tell(f"mmtok.kernels: {reason}; using the slower torch path")
        return reference
    native.select(path)
    return native


def cuda() -> ModuleType:
    """The module that serves CUDA tensors."""
    path, reason = _cuda_path()
    if path == "torch":
        if wanted() is None:
            _tell(f"mmtok.kernels: {reason}; using the slower torch path")
        return reference
    from mmtok.kernels import triton_ops

    return triton_ops


def status() -> Status:
    """The implementation in use for CPU and CUDA tensors, and the reason."""
    return Status(*cpu_path(), *_cuda_path())


def describe() -> str:
    """`status()` in two lines."""
    now = status()
    return f"cpu:  {now.cpu} ({now.cpu_reason})\ncuda: {now.cuda} ({now.cuda_reason})"


def wanted() -> str | None:
    """The path named by `forced` or MMTOK_KERNELS; None for the best there is."""
    name = _forced or os.environ.get("MMTOK_KERNELS") or None
    if name is not None and name not in PATHS:
        raise ValueError(f"MMTOK_KERNELS={name}: choose one of {', '.join(PATHS)}")
    return name


@contextlib.contextmanager
def forced(path: str) -> Iterator[None]:
    """Uses one path inside the block, in every thread; for tests and benchmarks."""
    global _forced
    before, _forced = _forced, path
    try:
        wanted()
        yield
    finally:
        _forced = before


def cpu_path() -> tuple[str, str]:
    """The path that serves CPU tensors, and why."""
    name = wanted()
    if name == "torch":
        return "torch", "asked for"
    if native.problem is not None:
        if name is not None:
            raise ValueError(f"MMTOK_KERNELS={name}: {native.problem}")
        return "torch", native.problem
    if name is None:
        return native.paths()[0], "C++ library, widest path this processor runs"
    if name not in native.paths():
        raise ValueError(f"MMTOK_KERNELS={name}: this processor runs {', '.join(native.paths())}")
    return name, "asked for"


def _cuda_path() -> tuple[str, str]:
    if wanted() == "torch":
        return "torch", "asked for"
    if not torch.cuda.is_available():
        return "torch", "no CUDA device"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "torch", "triton is not installed"
    return "triton", "default tile sizes, unmeasured"


def _tell(text: str) -> None:
    if text not in _told:
        _told.add(text)
        warnings.warn(text, stacklevel=3)
