"""Validation of audio codecs: metrics of decode(encode(x)) at several depths, every utterance alone and unpadded.

Legend: B batch, C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mmtok.metrics.audio.suite import AudioSuite
from mmtok.metrics.base import Metric, all_reduce
from mmtok.tokenizer import Tokenizer
from mmtok.training.validation import Validation, reconstruct
from mmtok.types import Batch


class AudioValidation(Validation):
    """Means over utterances of the metrics that `mmtok eval` reports, under the same keys: `val/mel_dac`, ...

    sample_rate  Hz of the codec
    lengths      residual depths (or numbers of tokens) to send, besides everything; needs a tail
    metrics      names of `mmtok.metrics.audio.suite.NAMES`; the defaults take milliseconds a clip

    Channels are averaged before they are scored. What a metric cannot score is left out of its mean and counted in
    `val/<metric>_failed`.
    """

    def __init__(
        self, sample_rate: int, lengths: Sequence[int] = (), metrics: Sequence[str] = ("mel", "stft", "si_sdr")
    ) -> None:
        self.suite = AudioSuite(tuple(metrics), sample_rate)
        super().__init__(lengths, [])

    def restart(self) -> None:
        """Forgets everything seen."""
        super().restart()
        self.panels = {length: self.suite.panel() for length in self.lengths}

    @torch.no_grad()
    def update(self, tokenizer: Tokenizer, batch: Batch) -> None:
        """Counts one batch of float [B, C, T]; no process waits for another here."""
        samples = [batch.x.shape[-1]] * len(batch.keys) if batch.lengths is None else batch.lengths.tolist()
        for index, (key, count) in enumerate(zip(batch.keys, samples, strict=True)):
            clip = batch.x[index : index + 1, :, :count].float()
            rate = None if batch.rate is None else batch.rate[index : index + 1]
            features = {name: value[index : index + 1] for name, value in batch.features.items()}
            one = replace(Batch.of(clip, (key,)), rate=rate, features=features)
            original = self.suite.hear(clip[0].mean(0))
            for length, panel in self.panels.items():
                panel.update(key, original, self.suite.hear(reconstruct(tokenizer, one, length)[0].mean(0)))
        self.seen += 1

    def compute(self) -> dict[str, float]:
        """`val/<metric>` of everything and `val/<metric>_n<length>` of the others, over all processes."""
        cut = Metric(cut=torch.tensor([int(self.cut)]))
        all_reduce([*(state for panel in self.panels.values() for state in panel.states()), cut])
        if int(cut.states["cut"]):  # some process was stopped half-way
            return {}
        values: dict[str, float] = {}
        for length, panel in self.panels.items():
            suffix = "" if length is None else f"_n{length}"
            values |= {f"val/{key}{suffix}": value for key, value in panel.compute().items()}
            values |= {f"val/{key}_failed{suffix}": float(value) for key, value in panel.failed().items()}
        return values
