"""Comparisons with the original, sample by sample: PESQ, STOI, ESTOI, SI-SDR.

Legend: T samples.

Signals must be aligned: PESQ aligns by itself, the others do not.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from mmtok.metrics.audio.base import Scorer, Unscorable
from mmtok.metrics.audio.mos import EXTRA


class PESQ(Scorer):
    """Key `pesq_wb`: ITU-T P.862.2 wide band at 16 kHz by the package `pesq` (P.862 code, without Corrigendum 2)."""

    name, rate, keys = "pesq", 16000, ("pesq_wb",)

    def __init__(self) -> None:
        try:
            import pesq
        except ImportError:
            raise ValueError(f"metrics: pesq needs the package pesq: {EXTRA}") from None
        self.package = pesq

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        if not float(degraded.abs().max()):
            raise Unscorable("the reconstruction is silent")  # the package would divide by zero
        try:
            value = self.package.pesq(16000, reference.numpy(), degraded.numpy(), "wb")
        except self.package.NoUtterancesError:
            raise Unscorable("no speech found") from None
        except self.package.BufferTooShortError:
            raise Unscorable("shorter than 1/4 s") from None
        return {"pesq_wb": float(value)}


class STOI(Scorer):
    """Key `stoi` (Taal et al. 2011), or `estoi` (Jensen & Taal 2016) when extended, by the package `pystoi`.

    It works at 10 kHz inside, leaves out silent frames of the original, and needs 30 others (.4 s of speech).
    """

    rate = 16000

    def __init__(self, extended: bool = False) -> None:
        try:
            from pystoi import stoi
        except ImportError:
            raise ValueError(f"metrics: stoi needs the package pystoi: {EXTRA}") from None
        self.name = "estoi" if extended else "stoi"
        self.keys, self.extended, self._stoi = (self.name,), extended, stoi

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        if not float(reference.abs().max()):
            raise Unscorable("the original is silent")
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # too few frames give 1e-5 and a warning
            try:
                value = self._stoi(reference.double().numpy(), degraded.double().numpy(), 16000, self.extended)
            except (RuntimeWarning, ValueError, IndexError):
                raise Unscorable("less than .4 s of speech") from None
        return {self.keys[0]: float(value)}


class SISDR(Scorer):
    """Key `si_sdr`, dB: scale-invariant signal-to-distortion ratio (Le Roux et al. 2019), means removed, capped at 100.

    Low for codecs that rebuild phases freely: never select models by it.
    """

    name, keys = "si_sdr", ("si_sdr",)
    CAP = 100.0

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        x, y = (signal.double() - signal.double().mean() for signal in (reference, degraded))
        power = x.square().sum()
        if not float(power):
            raise Unscorable("the original is silent")
        target = (x @ y) / power * x
        wanted, error = target.square().sum(), (y - target).square().sum()
        if not float(wanted):
            raise Unscorable("the reconstruction holds nothing of the original")
        floor = wanted * 10 ** (-self.CAP / 10)
        return {"si_sdr": float(10 * torch.log10(wanted / torch.maximum(error, floor)))}
