"""Shards in, batches out: one global order, an index, a reader, decoders, and the tools that make shards.

`ShardData` (images), `AudioData` and `VideoData` are LightningDataModules. They are loaded on first use, so that
`mmtok.data.decode` and `mmtok.data.transforms` stay importable in the core install, which has neither lightning nor
webdataset.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtok.data.audio_module import AudioData
    from mmtok.data.module import ShardData
    from mmtok.data.shard_module import Source
    from mmtok.data.video_module import VideoData

__all__ = ["AudioData", "ShardData", "Source", "VideoData"]
_MODULES = {
    "AudioData": "audio_module", "ShardData": "module", "Source": "shard_module", "VideoData": "video_module",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"mmtok.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
