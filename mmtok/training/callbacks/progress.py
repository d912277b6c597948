"""The progress bar: the loss and the speed beside Lightning's own columns."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar

_SHOWN = {"loss/total": "loss", "perf/samples_per_second": "samples/s", "perf/data_wait": "wait"}


class ProgressBar(RichProgressBar):
    """Rich progress bar; values are those last logged."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        logged = getattr(pl_module, "shown", {})
        return {short: round(logged[name], 4) for name, short in _SHOWN.items() if name in logged}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch}"  # the stock text counts to max_epochs - 1, which is -2 when steps set the end
