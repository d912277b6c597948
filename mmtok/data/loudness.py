"""Loudness policies of training clips. None at all keeps the level of the recording, and evaluation always does.

Legend: C channels, n samples.
"""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

PEAK = 0.999


def level(x: NDArray[np.float32]) -> float:
    """dB of the root mean square, relative to full scale; -inf for digital silence."""
    power = float(np.square(x, dtype=np.float64).mean()) if x.size else 0.0
    return 10 * math.log10(power) if power > 0 else -math.inf


class Loudness:
    """Base: float32 [C, n] and a random generator of the clip -> float32 [C, n], peak at most .999."""

    def gain(self, x: NDArray[np.float32], rng: random.Random) -> float:
        """dB to add."""
        raise NotImplementedError

    def __call__(self, x: NDArray[np.float32], rng: random.Random) -> NDArray[np.float32]:
        factor = 10 ** (self.gain(x, rng) / 20)
        peak = float(np.abs(x).max(initial=0.0))
        if peak * factor > PEAK:  # quieter rather than clipped
            factor = PEAK / peak
        return x * np.float32(factor)


class RandomGain(Loudness):
    """Gain uniform in [low, high] dB."""

    def __init__(self, low: float = -12.0, high: float = 6.0) -> None:
        if low > high:
            raise ValueError(f"data.loudness: low must not exceed high, got {low} and {high}")
        self.low, self.high = low, high

    def gain(self, x: NDArray[np.float32], rng: random.Random) -> float:
        return rng.uniform(self.low, self.high)


class TargetLevel(Loudness):
    """Root mean square brought to `db` (dBFS), plus or minus a uniform `jitter` in dB; gain is capped at `max_gain`."""

    def __init__(self, db: float = -24.0, jitter: float = 0.0, max_gain: float = 30.0) -> None:
        if db > 0 or jitter < 0:
            raise ValueError(f"data.loudness: db must be at most 0 and jitter at least 0, got {db} and {jitter}")
        self.db, self.jitter, self.max_gain = db, jitter, max_gain

    def gain(self, x: NDArray[np.float32], rng: random.Random) -> float:
        now, jitter = level(x), rng.uniform(-self.jitter, self.jitter)
        return 0.0 if now == -math.inf else min(self.db + jitter - now, self.max_gain)
