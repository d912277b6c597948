"""Callbacks that every run has; each is configured by a top-level key of the YAML."""

from mmtok.training.callbacks.checkpoint import Checkpoint
from mmtok.training.callbacks.export import Export
from mmtok.training.callbacks.manifest import Manifest
from mmtok.training.callbacks.media import MediaGrid
from mmtok.training.callbacks.progress import ProgressBar
from mmtok.training.callbacks.watch import Watch

__all__ = ["Checkpoint", "Export", "Manifest", "MediaGrid", "ProgressBar", "Watch"]
