"""Short-time spectra of audio and mel filters, as losses and discriminators need them.

Legend: B batch, C channels, T samples, F = n_fft // 2 + 1 frequencies, M mel bands, N frames.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["centre", "inner", "fill", "none"]


class Spectrum(nn.Module):
    """x [B, C, T] -> complex64 [B, C, F, N], Hann window (periodic).

    padding     "centre": n_fft // 2 reflected samples a side, 1 + T // hop frames;
                "inner": (n_fft - hop) // 2 a side; "fill": the same and zeros up to a whole last frame; "none"
    normalized  divides by the root of the window's energy
    window      "hann", or "ones" for a rectangular one

    With `lengths` every item is reflected at its own end, so its first `frames(lengths)` frames are those it has alone
    and what lies behind its end is never read.
    """

    window: Tensor

    def __init__(
        self, n_fft: int, hop: int, win_length: int | None = None, padding: Padding = "centre",
        normalized: bool = False, window: Literal["hann", "ones"] = "hann",
    ) -> None:
        super().__init__()
        self.n_fft, self.hop, self.padding = n_fft, hop, padding
        size = win_length or n_fft
        # in float64 first: a window rounded twice moves the gradient of logarithms in the fourth digit
        taps = torch.ones(size, dtype=torch.float64)
        if window == "hann":
            taps = torch.hann_window(size, dtype=torch.float64)
        if normalized:
            taps = taps / taps.square().sum().sqrt()
        self.register_buffer("window", taps.float(), persistent=False)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = _reflect(x.float(), self._pad, lengths)
        if self.padding == "fill":
            over = x.shape[-1] - self.n_fft
            x = F.pad(x, (0, max(-over, -over % self.hop)))
        size = len(self.window)
        out = torch.stft(
            x.flatten(0, 1), self.n_fft, self.hop, size, self.window.float(), center=False, return_complex=True
        )
        return out.view(*x.shape[:2], *out.shape[1:])

    def frames(self, lengths: Tensor) -> Tensor:
        """int64 [B]: frames of clips of these lengths."""
        over = lengths + 2 * self._pad - self.n_fft
        steps = -(-over // self.hop) if self.padding == "fill" else over // self.hop
        return (steps + 1).clamp(min=0)

    @property
    def _pad(self) -> int:
        if self.padding == "none":
            return 0
        return self.n_fft // 2 if self.padding == "centre" else (self.n_fft - self.hop) // 2


class MelSpectrum(nn.Module):
    """x [B, C, T] -> float32 [B, C, M, N]: mel-weighted |S|**power.

    scale, area  see `mel_filters`; other arguments: see `Spectrum`
    """

    filters: Tensor

    def __init__(
        self, sample_rate: int, n_fft: int, hop: int, n_mels: int, win_length: int | None = None, f_min: float = 0.0,
        f_max: float | None = None, power: float = 1.0, scale: Literal["htk", "slaney"] = "htk", area: bool = False,
        padding: Padding = "centre", normalized: bool = False,
    ) -> None:
        super().__init__()
        self.spectrum = Spectrum(n_fft, hop, win_length, padding, normalized)
        self.power = power
        table = mel_filters(sample_rate, n_fft, n_mels, f_min, f_max, scale, area)
        self.register_buffer("filters", table, persistent=False)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        found = self.spectrum(x, lengths)
        found = found.real.square() + found.imag.square() if self.power == 2 else found.abs()
        with torch.autocast(found.device.type, enabled=False):
            return self.filters.float() @ found

    def frames(self, lengths: Tensor) -> Tensor:
        """int64 [B]: frames of clips of these lengths."""
        return self.spectrum.frames(lengths)


def mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float = 0.0, f_max: float | None = None,
    scale: Literal["htk", "slaney"] = "htk", area: bool = False,
) -> Tensor:
    """float32 [M, F]: triangles between n_mels + 2 points that lie evenly on a mel scale.

    scale  "htk": 2595 log10(1 + f / 700); "slaney": linear below 1 kHz, logarithmic above (Auditory Toolbox)
    area   divides each triangle by half its width in Hz
    f_max  None: half the sample rate
    """
    top = sample_rate / 2 if f_max is None else f_max
    to_mel, to_hz = (_htk, _htk_back) if scale == "htk" else (_slaney, _slaney_back)
    first, last = to_mel(f_min), to_mel(top)
    mels = [first + (last - first) * i / (n_mels + 1) for i in range(n_mels + 2)]
    points = torch.tensor([to_hz(m) for m in mels], dtype=torch.float64)[:, None]
    frequencies = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft  # also for odd n_fft
    low, mid, high = points[:-2], points[1:-1], points[2:]
    rising, falling = (frequencies - low) / (mid - low), (high - frequencies) / (high - mid)
    table = torch.minimum(rising, falling).clamp(min=0)
    if area:
        table = table * 2 / (high - low)
    return table.float()


def _htk(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _htk_back(mel: float) -> float:
    return 700 * (10 ** (mel / 2595) - 1)


_STEP = math.log(6.4) / 27  # of one mel above 1 kHz, in log Hz


def _slaney(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + math.log(hz / 1000) / _STEP


def _slaney_back(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * _STEP)


def _reflect(x: Tensor, pad: int, lengths: Tensor | None) -> Tensor:
    """[B, C, T] -> [B, C, T + 2 pad], mirrored at 0 and at each item's end; zeros further than `pad` behind it."""
    size = x.shape[-1]
    if lengths is None and (pad < size or not pad):
        return F.pad(x, (pad, pad), mode="reflect") if pad else x
    n = torch.full((x.shape[0],), size, device=x.device) if lengths is None else lengths.to(x.device)
    at = torch.arange(-pad, size + pad, device=x.device)[None]
    period = (2 * (n - 1)).clamp(min=1)[:, None]
    folded = at.remainder(period)
    index = torch.minimum(folded, period - folded)
    inside = at < (n + pad)[:, None]
    index = torch.where(inside, index, 0)
    out = x.gather(-1, index[:, None].expand(-1, x.shape[1], -1))
    return out.masked_fill(~inside[:, None], 0)
