"""`mmtok demo image|audio|video`: sample media to shards, a trained tail-drop tokenizer, and a report to look at."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """What one modality's demonstration trains on and with, in words for the terminal."""

    samples: str
    recipe: str
    media: str
    beside: str
    short_side: int | None = None


DEMOS = {
    "image": Demo(
        "samples:image", "demo/image", "photographs from installed packages, split by whole photograph",
        "JPEG, WebP and AVIF", short_side=512,
    ),
    "audio": Demo(
        "samples:audio", "demo/audio", "speech and music that come with the package, split by speaker",
        "Opus and Codec 2",
    ),
    "video": Demo(
        "samples:video", "demo/video", "clips from installed packages and camera paths over photographs, split by clip",
        "x264, x265 and SVT-AV1", short_side=256,
    ),
}  # fmt: skip


def demo(modality: str, out: Path) -> Path:
    """Writes shards/, run/, report/ and metrics.json below `out`; returns the report page.

    An existing demo is replaced, any other folder is refused. With the training extra on two CPU cores this takes
    some minutes; every step prints what it does and how long it took.
    """
    from mmtok.data.shards_cli import describe, make
    from mmtok.evaluate import main as evaluate
    from mmtok.listing import config_path
    from mmtok.training.cli import main as train

    this = DEMOS[modality]
    mark = out / ".mmtok-demo"
    if out.exists():
        if not mark.exists():
            raise FileExistsError(f"{out} exists and is not a demo: give another --out")
        print(f"replacing the earlier demo in {out}", file=sys.stderr)
        shutil.rmtree(out)
    out.mkdir(parents=True)
    mark.touch()

    started = time.perf_counter()
    _step("1/3", f"{this.media}, to WebDataset shards")
    for report in make(this.samples, str(out / "shards"), short_side=this.short_side, workers=2):
        print(describe(report))
    _step("2/3", f"train {config_path(this.recipe).name} (curves: {out}/run/metrics.csv)", started)
    train([
        "fit", "-c", str(config_path(this.recipe)), "--runs", str(out), "--name", "run", "--wandb", "false",
        f"--data.train={out / 'shards' / 'train'}", f"--data.val={out / 'shards' / 'heldout'}",
    ])  # fmt: skip
    _step("3/3", f"measure what was held out at every length, beside {this.beside}", started)
    evaluate(
        out / "run" / "tokenizer", str(out / "shards" / "heldout"), out, name=f"demo-{modality}",
        command=f"mmtok demo {modality}", overwrite=True,
    )
    page = out / "report" / "index.html"
    print(f"done in {time.perf_counter() - started:.0f} s: open {page}")
    return page


def _step(number: str, text: str, started: float | None = None) -> None:
    after = "" if started is None else f"  [{time.perf_counter() - started:.0f} s]"
    print(f"\n{number} {text}{after}", file=sys.stderr, flush=True)
