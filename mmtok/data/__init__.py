"""Shards in, batches out: one global order, an index, a reader, decoders, and the tools that make shards.

`ShardData` is the LightningDataModule. It is loaded on first use, so that `mmtok.data.decode` and
`mmtok.data.transforms` stay importable in the core install, which has neither lightning nor webdataset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtok.data.module import ShardData, Source

__all__ = ["ShardData", "Source"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from mmtok.data import module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
