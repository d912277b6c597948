"""Discrete tokenizers for images, video and audio: media in, codes out, and back."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtok.bitstream import load_tokens, save_tokens
    from mmtok.hub import load
    from mmtok.tokenizer import Tokenizer
    from mmtok.types import Batch, Tokens

__all__ = ["Batch", "Tokenizer", "Tokens", "load", "load_tokens", "save_tokens"]
__version__ = "0.1.0"

_HOME = {
    "Batch": "types", "Tokenizer": "tokenizer", "Tokens": "types", "load": "hub", "load_tokens": "bitstream",
    "save_tokens": "bitstream",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `mmtok --help` must not wait for it
    if name in _HOME:
        return getattr(import_module(f"mmtok.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mmtok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
