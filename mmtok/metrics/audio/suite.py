"""The audio metrics of one evaluation: scorers made once, one panel of means per candidate (a rate, a codec).

Legend: T samples of one utterance, mono, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mmtok.data.resample import resample
from mmtok.metrics.audio.base import Failure, Scorer, UtteranceMeans
from mmtok.metrics.audio.intrusive import PESQ, SISDR, STOI
from mmtok.metrics.audio.mos import DNSMOS, DistillMOS
from mmtok.metrics.audio.pitch import PitchErrors
from mmtok.metrics.audio.spectral import DACMelDistance, DACSTFTDistance, Mel80Distance
from mmtok.metrics.audio.utmos import UTMOS
from mmtok.metrics.audio.words import Resemblyzer, SpeakerSimilarity, Whisper, WordErrors
from mmtok.metrics.base import Metric

DEFAULT = ("distillmos", "pesq", "stoi", "estoi", "si_sdr", "mel", "mel80", "stft", "f0")
NAMES = (*DEFAULT, "dnsmos", "utmos", "wer", "speaker")
PROTOCOL = {
    "distillmos": "DistillMOS v7, 16 kHz", "dnsmos": "DNSMOS P.835 and P.808, 16 kHz, windows of 9.01 s",
    "utmos": "UTMOS22 strong, step 7459, 16 kHz, unpadded", "pesq": "P.862.2 wide band, 16 kHz",
    "stoi": "Taal 2011 by pystoi", "estoi": "Jensen & Taal 2016 by pystoi", "si_sdr": "zero mean, capped at 100 dB",
    "mel": "descript-audio-codec: 7 windows, log10, sum, at the codec's rate",
    "mel80": "80 Slaney bands, window 1024, hop 256, ln, 16 kHz",
    "stft": "descript-audio-codec: windows 2048 and 512, at the codec's rate",
    "f0": "YIN, 60 to 500 Hz, threshold .15, every 10 ms, 16 kHz",
    "wer": "against the transcript of the original", "speaker": "cosine to the original",
}


class AudioSuite:
    """Scorers by name (see `NAMES`) for codecs that work at `rate` Hz.

    weights  file or folder of third-party weights that come in no package (UTMOS, Whisper); None searches
    ValueError names an unknown metric, or what to install or download.
    """

    def __init__(
        self, names: tuple[str, ...], rate: int, device: torch.device | str = "cpu", weights: str | Path | None = None
    ) -> None:
        makers: dict[str, Callable[[], Scorer]] = {
            "distillmos": lambda: DistillMOS(device), "dnsmos": DNSMOS, "utmos": lambda: UTMOS(weights, device),
            "pesq": PESQ, "stoi": STOI, "estoi": lambda: STOI(extended=True), "si_sdr": SISDR,
            "mel": lambda: DACMelDistance(rate), "mel80": Mel80Distance, "stft": DACSTFTDistance, "f0": PitchErrors,
            "wer": lambda: WordErrors(Whisper(weights)), "speaker": lambda: SpeakerSimilarity(Resemblyzer()),
        }
        unknown = [name for name in names if name not in makers]
        if unknown or not names:
            raise ValueError(f"metrics: expected some of {', '.join(NAMES)}, got {', '.join(unknown) or 'none'}")
        self.rate = rate
        self.names = tuple(dict.fromkeys(names))
        self.scorers = [makers[name]() for name in self.names]

    def panel(self) -> AudioPanel:
        """Empty means for one candidate."""
        return AudioPanel(self)

    def hear(self, wave: Tensor) -> Heard:
        """[T] at the suite's rate, made ready for every scorer."""
        return Heard(wave, self.rate)


class Heard:
    """A signal [T] at its own rate and, once asked for, at others."""

    def __init__(self, wave: Tensor, rate: int) -> None:
        self.rate = rate
        self._at = {rate: wave.detach().float().cpu()}

    def at(self, rate: int | None) -> Tensor:
        """float32 [T'] on the CPU at `rate` Hz; None is its own."""
        rate = self.rate if rate is None else rate
        if rate not in self._at:
            self._at[rate] = torch.from_numpy(resample(self._at[self.rate][None].numpy(), self.rate, rate)[0])
        return self._at[rate]


class AudioPanel:
    """Means of one candidate."""

    def __init__(self, suite: AudioSuite) -> None:
        self.means = [UtteranceMeans(scorer) for scorer in suite.scorers]

    def update(self, utterance: str, reference: Heard, degraded: Heard) -> dict[str, float]:
        """Scores one utterance by all metrics; signals of unequal length are refused, nothing is padded."""
        out: dict[str, float] = {}
        for mean in self.means:
            pair = reference.at(mean.scorer.rate), degraded.at(mean.scorer.rate)
            if pair[0].shape != pair[1].shape:
                raise ValueError(f"{utterance}: original {pair[0].numel()} samples, reconstruction {pair[1].numel()}")
            out |= mean.update(utterance, *pair)
        return out

    def states(self) -> list[Metric]:
        return list(self.means)

    def compute(self) -> dict[str, float]:
        return {key: value for mean in self.means for key, value in mean.compute().items()}

    @property
    def failures(self) -> list[Failure]:
        return [failure for mean in self.means for failure in mean.failures]

    def failed(self) -> dict[str, int]:
        return {key: count for mean in self.means for key, count in mean.failed().items()}
