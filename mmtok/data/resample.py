"""Resampling, everywhere by one library: soxr.

Legend: C channels, n samples.

Why soxr and not torchaudio's windowed sinc: its filters are longer (pass band to .91 of Nyquist, stop band below -120
dB), any ratio costs the same (training speeds clips up by odd factors), and it resamples a stream in bounded memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MARGIN = 0.02  # seconds read before and after a crop, so that the filter sees what surrounds it


def resample(x: NDArray[np.float32], rate: float, to: float) -> NDArray[np.float32]:
    """float32 [C, n] at `rate` Hz -> [C, resampled_length(n)] at `to` Hz."""
    if rate == to:
        return x
    import soxr

    y = soxr.resample(np.ascontiguousarray(x.T), rate, to, quality="HQ").T
    return fit(y, resampled_length(x.shape[1], rate, to))


def resampled_length(n: int, rate: float, to: float) -> int:
    """Samples at `to` that cover n samples at `rate`: at least 1 for n >= 1."""
    return n if rate == to else max(min(n, 1), round(n * to / rate))


def fit(x: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Exactly n samples: cut, or zeros behind."""
    if x.shape[1] < n:
        x = np.pad(x, ((0, 0), (0, n - x.shape[1])))
    return np.ascontiguousarray(x[:, :n])


class ResampleStream:
    """The same for a signal that comes in pieces; `last` ends it."""

    def __init__(self, rate: float, to: float, channels: int) -> None:
        self.rate, self.to = rate, to
        self._heard = self._given = 0
        if rate != to:
            import soxr

            self._stream = soxr.ResampleStream(rate, to, channels, dtype="float32", quality="HQ")

    def push(self, x: NDArray[np.float32], last: bool = False) -> NDArray[np.float32]:
        """float32 [C, n] -> [C, what is ready]; over the whole stream the length that `resample` gives."""
        if self.rate == self.to:
            return x
        self._heard += x.shape[1]
        y = self._stream.resample_chunk(np.ascontiguousarray(x.T), last=last).T
        if last:
            y = fit(y, max(0, resampled_length(self._heard, self.rate, self.to) - self._given))
        self._given += y.shape[1]
        return np.ascontiguousarray(y)
