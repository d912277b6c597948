"""Distances between spectra. Each key names one published definition; values of two of them never compare.

Legend: T samples at the rate of the codec.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.metrics.audio.base import Scorer
from mmtok.nn.spectrum import MelSpectrum, Spectrum

WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
BANDS = (5, 10, 20, 40, 80, 160, 320)


class DACMelDistance(Scorer):
    """Key `mel_dac`: descript-audio-codec's mel distance, seven windows from 32 to 2048 samples with 5 to 320 bands.

    Sum over windows of the mean |log10 mel(x) - log10 mel(y)|, Slaney mel, clipped at 1e-5, hop a quarter window.
    Windows are counted in samples, so values of different rates do not compare.
    """

    name, keys = "mel", ("mel_dac",)

    def __init__(self, rate: int) -> None:
        self.scales = [
            MelSpectrum(rate, window, window // 4, bands, scale="slaney", area=True)
            for window, bands in zip(WINDOWS, BANDS, strict=True)
        ]

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        total = 0.0
        for mel in self.scales:
            x, y = mel(torch.stack([reference, degraded])[:, None]).clamp(min=1e-5).log10()
            total += float((x - y).abs().mean())
        return {"mel_dac": total}


class Mel80Distance(Scorer):
    """Key `mel80_16k`: mean |ln mel(x) - ln mel(y)| at 16 kHz, window 1024, hop 256, 80 Slaney bands, clipped at 1e-5.

    The same for codecs of every rate, so this is the one to compare them by.
    """

    name, rate, keys = "mel80", 16000, ("mel80_16k",)

    def __init__(self) -> None:
        self.mel = MelSpectrum(16000, 1024, 256, 80, scale="slaney", area=True)

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        x, y = self.mel(torch.stack([reference, degraded])[:, None]).clamp(min=1e-5).log()
        return {"mel80_16k": float((x - y).abs().mean())}


class DACSTFTDistance(Scorer):
    """Key `stft_dac`: descript-audio-codec's STFT distance, windows of 2048 and 512 samples, hop a quarter.

    Sum over windows of mean |log10 |X|^2 - log10 |Y|^2| (magnitudes clipped at 1e-5) and mean ||X| - |Y||.
    """

    name, keys = "stft", ("stft_dac",)

    def __init__(self) -> None:
        self.scales = [Spectrum(window, window // 4) for window in (2048, 512)]

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        total = 0.0
        for spectrum in self.scales:
            x, y = spectrum(torch.stack([reference, degraded])[:, None]).abs()
            logs = (2 * (x.clamp(min=1e-5).log10() - y.clamp(min=1e-5).log10())).abs().mean()
            total += float(logs + (x - y).abs().mean())
        return {"stft_dac": total}
