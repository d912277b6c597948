"""Validation: metrics of decode(encode(x)) at several lengths in one pass.

Legend: B batch, H, W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from mmtok.keep import Prefix
from mmtok.metrics.base import MeanMetric, Metric, all_reduce
from mmtok.metrics.pixels import PSNR, to_uint8
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch


class Validation:
    """Scores images [B, 3, H, W] of a tokenizer after rounding to 8 bits, as files would hold them.

    lengths  codes to send (residual depth for models that vary that), besides everything; needs a tail
    metrics  what to measure; PSNR when None
    """

    def __init__(self, lengths: Sequence[int] = (), metrics: Sequence[MeanMetric] | None = None) -> None:
        self.lengths: list[int | None] = [None, *lengths]
        self.metrics = list(metrics) if metrics is not None else [PSNR()]
        self.restart()

    def restart(self) -> None:
        """Forgets everything seen."""
        self.running = {length: [_fresh(metric) for metric in self.metrics] for length in self.lengths}
        self.seen, self.cut = 0, False

    @torch.no_grad()
    def update(self, tokenizer: Tokenizer, batch: Batch) -> None:
        """Counts one batch; no process waits for another here."""
        real = _images(batch.x)
        for length, metrics in self.running.items():
            fake = _images(reconstruct(tokenizer, batch, length))
            for metric in metrics:
                metric.update(real, fake)
        self.seen += 1

    def compute(self) -> dict[str, float]:
        """`val/<metric>` at full length and `val/<metric>_n<length>` at the others, over all processes."""
        flat = [metric for metrics in self.running.values() for metric in metrics]
        cut = Metric(cut=torch.tensor([int(self.cut)]))
        all_reduce([*flat, cut])
        if int(cut.states["cut"]):  # some process was stopped half-way
            return {}
        if not all(int(metric.states["count"]) for metric in flat):
            return {}
        return {
            f"val/{key}" + ("" if length is None else f"_n{length}"): value
            for length, metrics in self.running.items()
            for metric in metrics
            for key, value in metric.compute().items()
        }


def reconstruct(tokenizer: Tokenizer, batch: Batch, length: int | None = None) -> Tensor:
    """decode(encode(x)) at a length (None: everything), float [B, C, *X] in [-1, 1]."""
    if length is None:
        return tokenizer.decode(tokenizer.encode(batch))
    if tokenizer.tail is not None and tokenizer.tail.coding == Prefix(1):
        return tokenizer.decode(tokenizer.encode(batch, num_quantizers=length))
    return tokenizer.decode(tokenizer.encode(batch, num_tokens=length))


def _images(x: Tensor) -> Tensor:
    """uint8 [B, 3, H, W]; the frames of a video [B, 3, T, H, W] count as images."""
    x = to_uint8(x)
    return x if x.dim() == 4 else x.movedim(2, 1).flatten(0, 1)


def _fresh(metric: MeanMetric) -> MeanMetric:
    """The same metric with empty states; networks inside are shared."""
    fresh = copy.copy(metric)
    fresh.states = {name: torch.zeros_like(state) for name, state in metric.states.items()}
    fresh.reduced = False
    return fresh
