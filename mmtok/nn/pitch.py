"""Fundamental frequency of speech, frame by frame, from correlations alone.

Legend: B batch, T samples, M hop, F = T / M frames, P candidates, L lags.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE, LOWEST, HIGHEST = 16000, 60.0, 420.0  # Hz
WINDOW = 640  # samples that are correlated: two periods and more of all but the lowest voices
SPAN = 5  # frames to each side that take part in the choice


class PitchTracker(nn.Module):
    """x [B, T] at 16 kHz, T a multiple of hop -> (u float32 [B, F] in [0, 1], voiced bool [B, F]).

    F0 = LOWEST (HIGHEST / LOWEST)^u. Candidates are scored by the normalized cross-correlation of samples below 1 kHz
    at their lag, short lags a little better (RAPT: Talkin 1995), and chosen together with those of `SPAN` frames to
    each side: a jump of pitch costs by its size, a change of voicing a constant. Nothing further off has a say, so
    pieces of a long signal give the values of the whole.

    hop         M
    candidates  P, evenly over log frequency
    unvoiced    correlation that a pitch must reach
    jump        cost of a step of four candidates from frame to frame
    switch      cost of a change of voicing; long: of the longest lag
    quiet       amplitude of white noise, added to the energies, below which nothing is periodic
    """

    taps: Tensor
    lags: Tensor

    def __init__(
        self, hop: int = 320, candidates: int = 141, unvoiced: float = 0.5, jump: float = 0.06, switch: float = 0.25,
        long: float = 0.06, quiet: float = 1e-3,
    ) -> None:
        super().__init__()
        self.hop = hop
        self.unvoiced, self.jump, self.switch, self.long, self.quiet = unvoiced, jump, switch, long, quiet
        frequencies = LOWEST * (HIGHEST / LOWEST) ** torch.linspace(0, 1, candidates, dtype=torch.float64)
        self.register_buffer("lags", RATE / frequencies, persistent=False)
        t = torch.arange(-32, 33, dtype=torch.float64) / RATE
        taps = torch.sinc(2000 * t) * torch.hann_window(65, periodic=False, dtype=torch.float64)
        self.register_buffer("taps", (taps / taps.sum()).float(), persistent=False)

    @property
    def reach(self) -> int:
        """Code frames to each side of a frame that it depends on."""
        return SPAN + -(-(WINDOW // 2 + int(RATE / LOWEST)) // self.hop)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self._scores(x.float())
        best = (scores + self._from_one_side(scores) + self._from_one_side(scores.flip(1)).flip(1)).argmax(2)
        last = len(self.lags)
        return best.clamp(max=last - 1) / (last - 1), best < last

    def _scores(self, x: Tensor) -> Tensor:
        """[B, F, P + 1]; the last is that of no pitch."""
        low = F.conv1d(x[:, None], self.taps[None, None], padding=len(self.taps) // 2)[:, 0]
        longest = int(self.lags.max()) + 2
        size = WINDOW + longest
        left = (size - self.hop) // 2
        frames = F.pad(low, (left, size - self.hop - left)).unfold(1, size, self.hop)
        products, windows = correlate(frames, WINDOW, longest)
        floor = WINDOW * self.quiet**2  # in silence nothing correlates
        normal = products / ((windows[..., :1] + floor) * (windows + floor)).sqrt()
        at = self.lags.to(normal).expand(*normal.shape[:2], -1)
        below = at.floor().long()
        ends = normal.gather(2, below), normal.gather(2, below + 1)
        found = torch.lerp(ends[0], ends[1], at - below) - self.long * at / longest
        return torch.cat([found, torch.full_like(found[..., :1], self.unvoiced)], 2)

    def _from_one_side(self, scores: Tensor) -> Tensor:
        """[B, F, P + 1]: the best that the `SPAN` frames before can add to each choice."""
        wide = 12  # candidates a frame that pitch may move: a whole tone
        costs = self.jump * (torch.arange(-wide, wide + 1, device=scores.device).abs() - 1).clamp(min=0) / 4
        added = torch.zeros_like(scores)
        for _ in range(SPAN):
            before = F.pad((scores + added)[:, :-1], (0, 0, 1, 0))
            pitch, none = before[..., :-1], before[..., -1:]
            near = F.pad(pitch, (wide, wide), value=-9.0).unfold(2, 2 * wide + 1, 1) - costs
            kept = torch.maximum(near.amax(-1), none - self.switch)
            stopped = torch.maximum(none, pitch.amax(-1, keepdim=True) - self.switch)
            added = torch.cat([kept, stopped], 2)
        return added


def correlate(frames: Tensor, window: int, longest: int) -> tuple[Tensor, Tensor]:
    """(products, energies), each [..., longest + 1], of the first `window` samples of frames [..., n] and of as many at
    every lag up to `longest` behind: sums of x[t] x[t + lag], by FFT, and of x[t + lag]^2.
    """
    points = 1 << (frames.shape[-1] + window).bit_length()
    head = torch.fft.rfft(frames[..., :window], points)
    products = torch.fft.irfft(head.conj() * torch.fft.rfft(frames, points), points)[..., : longest + 1]
    energy = F.pad(frames.square().cumsum(-1), (1, 0))
    return products, energy[..., window : window + longest + 1] - energy[..., : longest + 1]
