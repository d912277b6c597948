"""Where a run's numbers go: `metrics.csv` in the run folder always, Weights & Biases as well."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only


class CSVLog(Logger):
    """`metrics.csv`: one row a call, one column a metric. A resumed run appends; new metrics widen the table."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.path = self.folder / "metrics.csv"
        self.columns: list[str] = []
        if self.path.is_file():
            with open(self.path, newline="") as stream:
                self.columns = next(csv.reader(stream), [])

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` holds everything."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step} | {name: f"{float(value):.8g}" for name, value in metrics.items()}
        new = [name for name in row if name not in self.columns]
        if new:
            self._widen(new)
        with open(self.path, "a", newline="") as stream:
            csv.DictWriter(stream, self.columns).writerow(row)

    def _widen(self, new: list[str]) -> None:
        rows: list[dict[str, str]] = []
        if self.path.is_file():
            with open(self.path, newline="") as stream:
                rows = list(csv.DictReader(stream))
        self.columns += new
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".metrics.{os.getpid()}")
        with open(temporary, "w", newline="") as stream:
            writer = csv.DictWriter(stream, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)


def wandb_logger(folder: Path, name: str, project: str) -> WandbLogger:
    """W&B for this run: offline without a key (`wandb sync` uploads later), the same curve after a restart."""
    note = folder / "wandb_id"
    run_id = note.read_text().strip() if note.is_file() else os.urandom(4).hex()
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(run_id)
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    return WandbLogger(
        name=name, project=project, save_dir=str(folder), id=run_id, resume="allow", offline=mode == "offline",
        log_model=False, settings=_settings(mode),
    )  # fmt: skip


def _settings(mode: str) -> Any:
    import wandb

    chosen: Any = mode
    return wandb.Settings(mode=chosen, silent=mode != "online", console="off")
