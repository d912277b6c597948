"""Pictures of inputs and reconstructions.

Legend: B batch, H, W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from torch import Tensor

from mmtok.metrics.pixels import to_uint8
from mmtok.training.task import TokenizerTask
from mmtok.training.validation import reconstruct
from mmtok.types import Batch


class MediaGrid(pl.Callback):
    """Every validation: a grid with the inputs on top and one row of reconstructions per length, shortest first.

    The first images of the first validation batch; written to `<run>/media/step_<n>.png` and to W&B.

    count  images per grid; 0 draws nothing
    """

    def __init__(self, count: int = 8) -> None:
        self.count = count

    @torch.no_grad()
    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: TokenizerTask, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or dataloader_idx or not self.count or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if batch.x.dim() not in (4, 5) or batch.x.shape[1] != 3:
            return  # audio has no picture
        few = Batch.of(batch.x[: self.count], batch.keys[: self.count])
        lengths = sorted(n for n in pl_module.validation.lengths if n is not None)
        rows = [few.x] + [reconstruct(pl_module.tokenizer, few, length) for length in [*lengths, None]]
        picture = grid(rows)
        step = trainer.global_step
        folder = Path(trainer.default_root_dir) / "media"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"step_{step:09d}.png")
        caption = f"step {step}; rows: input, {', '.join(str(n) for n in lengths)}{', ' if lengths else ''}full"
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                # the logger's own step would count calls: the caption carries ours
                logger.log_image("media/reconstructions", [picture], caption=[caption])


def grid(rows: list[Tensor]) -> Image.Image:
    """Rows of float images [B, 3, H, W] (or the middle frames of videos) in [-1, 1] as one picture."""
    frames = [row if row.dim() == 4 else row[:, :, row.shape[2] // 2] for row in rows]
    lines = [torch.cat(list(to_uint8(row)), 2) for row in frames]
    return Image.fromarray(torch.cat(lines, 1).movedim(0, -1).cpu().contiguous().numpy())
