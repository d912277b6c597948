"""Calls the C++ library through ctypes, which lets go of Python's global lock for the length of the call."""
from __future__ import annotations

problem: str | None = "the C++ library is not built"


def paths() -> tuple[str, ...]:
    return ()


def select(path: str) -> None:
    pass
