"""Fundamental frequency by YIN (de Cheveigne & Kawahara 2002), and how far a reconstruction's melody is off.

Legend: T samples at 16 kHz, N frames (one per 10 ms), L lags.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmtok.metrics.audio.base import Scorer, Unscorable
from mmtok.nn.pitch import correlate

RATE, HOP, WINDOW = 16000, 160, 640  # 40 ms windows
LOWEST, HIGHEST = 60.0, 500.0  # Hz
THRESHOLD, FLOOR = 0.15, -50.0  # aperiodicity of voiced frames; dB below the loudest frame of the clip


class PitchErrors(Scorer):
    """Keys `f0_yin_rmse_cents` over frames voiced in both, and `vuv_yin_error`, share of frames whose voicing differs.

    A frame is voiced when YIN's aperiodicity falls below .15 between 60 and 500 Hz and its level is within 50 dB of the
    loudest frame of the same clip.
    """

    name, rate, keys = "f0", RATE, ("f0_yin_rmse_cents", "vuv_yin_error")

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        (x, voiced), (y, also) = yin(reference), yin(degraded)
        if not x.numel():
            raise Unscorable("shorter than one frame")
        both = voiced & also
        out = {"vuv_yin_error": float((voiced != also).double().mean())}
        if bool(both.any()):
            cents = 1200 * (y[both] / x[both]).log2()
            out["f0_yin_rmse_cents"] = float(cents.square().mean().sqrt())
        return out  # without the first key where no frame is voiced in both


def yin(wave: Tensor) -> tuple[Tensor, Tensor]:
    """(F0 in Hz float64 [N], voiced bool [N]) of [T]; F0 of unvoiced frames is a guess."""
    shortest, longest = math.floor(RATE / HIGHEST), math.ceil(RATE / LOWEST)
    size = WINDOW + longest + 1
    if wave.numel() < size:
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)
    frames = wave.double().unfold(0, size, HOP)
    difference = _difference(frames, longest + 1)
    lags = torch.arange(1, longest + 2, dtype=torch.float64)
    # cumulative mean normalized difference, of lags 1, 2, ...
    normal = difference[:, 1:] * lags / difference[:, 1:].cumsum(1).clamp(min=1e-12)
    inner = normal[:, shortest - 1 : longest]  # lags shortest .. longest
    after = normal[:, shortest : longest + 1]
    dips = (inner < THRESHOLD) & (inner <= after)
    found = dips.any(1)
    choice = torch.where(found, dips.to(torch.int8).argmax(1), inner.argmin(1)) + shortest - 1
    period = 1 + choice + _vertex(normal, choice)
    level = frames[:, :WINDOW].square().mean(1)
    loud = level > level.max() * 10 ** (FLOOR / 10)
    return RATE / period, found & loud & (level > 1e-10)


def _difference(frames: Tensor, longest: int) -> Tensor:
    """[N, longest + 1]: sum over the window of (x[t] - x[t + lag])^2, by FFT."""
    products, windows = correlate(frames, WINDOW, longest)
    return (windows[:, :1] + windows - 2 * products).clamp(min=0)


def _vertex(curve: Tensor, at: Tensor) -> Tensor:
    """Offset of the minimum of the parabola through the three points around each index, within half a step."""
    index = at.clamp(1, curve.shape[1] - 2)[:, None]
    left, mid, right = (curve.gather(1, index + shift)[:, 0] for shift in (-1, 0, 1))
    bend = left - 2 * mid + right
    offset = torch.where(bend > 1e-12, 0.5 * (left - right) / bend.clamp(min=1e-12), torch.zeros_like(mid))
    return torch.where(index[:, 0] == at, offset.clamp(-0.5, 0.5), torch.zeros_like(mid))
