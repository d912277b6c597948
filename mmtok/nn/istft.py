"""Fourier head: frames of features to samples.

Legend: B batch, F frames, C channels, N = n_fft.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmtok.nn.stream import Causal, Stream

MAX_MAGNITUDE = 100.0


class ISTFTHead(Causal):
    """x [B, C, F] -> samples [B, 1, T] (Vocos, arXiv 2306.00814): one linear layer gives log magnitude and phase.

    padding  "same": T = F * hop, (N - hop) / 2 samples are cut off at both ends;
             "center": T = (F - 1) * hop, N / 2 are cut off, the inverse of a centred STFT;
             "causal": T = F * hop, N - hop are cut off at the end, so that it streams: the first samples fade in
    Magnitudes are clipped at 100. Works in float32 under autocast too: Fourier transforms know no bfloat16.
    """

    window: Tensor

    def __init__(
        self, dim: int, n_fft: int, hop: int, padding: Literal["same", "center", "causal"] = "same"
    ) -> None:
        super().__init__()
        if n_fft % 2 or not 0 < hop <= n_fft // 2 or (n_fft - hop) % 2:
            raise ValueError(f"head: n_fft {n_fft} must be even, at least twice the hop {hop}, their difference even")
        self.n_fft, self.hop, self.padding = n_fft, hop, padding
        self.linear = nn.Linear(dim, n_fft + 2)
        # computed, not saved: published files hold the same Hann window
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, F] -> [B, 1, T]."""
        if stream is not None and not x.shape[-1]:
            return x.new_zeros(x.shape[0], 1, 0)
        with torch.autocast(x.device.type, enabled=False):
            frames = self._frames(x.float())
            if stream is not None:
                return self._piece(frames, stream)
            y = self._overlap(frames)
            if self.padding == "causal":
                return (y / self._steady())[:, None, : x.shape[-1] * self.hop]
            envelope = self._overlap(self.window.square().expand(1, x.shape[-1], -1))
            cut = self.n_fft // 2 if self.padding == "center" else (self.n_fft - self.hop) // 2
            y, envelope = (part[:, cut : part.shape[1] - cut] for part in (y, envelope))
            return (y / envelope.clamp(min=1e-11))[:, None]

    def _frames(self, x: Tensor) -> Tensor:
        """Windowed frames of samples [B, F, N]."""
        log_magnitude, phase = self.linear(x.transpose(1, 2)).chunk(2, -1)
        magnitude = log_magnitude.exp().clamp(max=MAX_MAGNITUDE)
        spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        return torch.fft.irfft(spectrum, self.n_fft, dim=-1) * self.window

    def _overlap(self, frames: Tensor) -> Tensor:
        """Overlap-add: [B, F, N] -> [B, (F - 1) * hop + N]."""
        length = (frames.shape[1] - 1) * self.hop + self.n_fft
        folded = nn.functional.fold(
            frames.transpose(1, 2), (1, length), kernel_size=(1, self.n_fft), stride=(1, self.hop)
        )
        return folded[:, 0, 0]

    def _steady(self) -> float:
        """The sum of squared windows where all frames overlap; flat for a Hann window of at least four hops."""
        return float(self.window.square().sum()) / self.hop

    def _piece(self, frames: Tensor, stream: Stream) -> Tensor:
        if self.padding != "causal":
            raise ValueError("head.padding: only causal can stream")
        count = frames.shape[1] * self.hop
        y = self._overlap(frames)
        held = stream.memory.get(self)
        if held is not None:
            n = held.shape[1]
            y = torch.cat([y[:, :n] + held, y[:, n:]], 1)
        stream.memory[self] = y[:, count:]
        return (y / self._steady())[:, None, :count]
