"""A codec of speech with an explicit pitch: a harmonic source and noise, shaped by what a network decodes.

Legend: B batch, T samples, F code frames, L parts of 10 ms a frame, P = L / 2 pitches a frame, E bands, N = 2 L F
spectra, K frequencies.

The first latent channels are the fundamental frequency, measured, not learned; the others hold log energies of bands
and what a network may add. The decoder makes a pulse train of that frequency and noise, shapes both by the bands, and
a network corrects how loud each is at every frequency and how the phases of the pulses move. A vocoder that starts so
need not learn what a period is, which costs other decoders most of their training. Source and filter: Dudley 1939;
with networks: NSF (arXiv 1904.12088), DDSP (2001.04643); in the Fourier domain: HiFTNet (2309.09493).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.models.audio.spectral import FrameBlock, SpectralEncoder
from mmtok.nn.pitch import HIGHEST, LOWEST, RATE, PitchTracker
from mmtok.nn.spectrum import Spectrum, mel_filters

GAP = 0.1  # between the value of an unvoiced frame, -1, and that of the lowest pitch
PART = 160  # samples of a part; a pitch is measured every second one
WINDOW = 512  # samples under which energies are measured
PLAIN = 120.0  # Hz over which spectra without a pitch are smoothed
CENTRE, SPREAD, SILENCE = -9.0, 3.0, 1e-7  # of log energies: mean, divisor, what is added before the logarithm


class HarmonicEncoder(nn.Module):
    """x [B, 1, T] at 16 kHz, T a multiple of the hop of 160 L samples -> z [B, P + L E, F].

    The first P channels: -1 unvoiced, else a pitch in [-.9, 1]; then the log energies of E mel bands in every part.

    bands                  E
    parts                  L, even
    width, hidden, layers  of a network that adds to the energies, silent at the start; 0 layers: none
    """

    channels = 1
    filters: Tensor

    def __init__(
        self, bands: int = 32, parts: int = 4, width: int = 192, hidden: int = 576, layers: int = 0
    ) -> None:
        super().__init__()
        _check(parts)
        self.stride, self.parts = PART * parts, parts
        self.pitch = PitchTracker(2 * PART)
        self.spectrum = Spectrum(WINDOW, PART, padding="inner", normalized=True)
        filters = mel_filters(RATE, WINDOW, bands, area=True) * (RATE / WINDOW)  # white noise gives its variance
        self.register_buffer("filters", filters, persistent=False)
        self.network: SpectralEncoder | None = None
        if layers:
            self.network = SpectralEncoder(bands * parts, width, hidden, layers, self.stride, parts)
            nn.init.zeros_(self.network.out.weight)
            nn.init.zeros_(self.network.out.bias)

    @property
    def reach(self) -> int:
        """Code frames to each side of a frame that it depends on."""
        pitch = -(-2 * self.pitch.reach // self.parts)
        return max(pitch, 1) if self.network is None else max(pitch, self.network.reach)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            u, voiced = self.pitch(x[:, 0].float())
            s = self.spectrum(x.float())[:, 0].transpose(1, 2)
            hertz = torch.where(voiced, LOWEST * (HIGHEST / LOWEST) ** u, PLAIN).repeat_interleave(2, 1)
            power = smooth(s.real.square() + s.imag.square(), hertz * (WINDOW / RATE)) @ self.filters.T
            bands = ((power + SILENCE).log() - CENTRE) / SPREAD
        pitch = torch.where(voiced, GAP - 1 + (2 - GAP) * u, -torch.ones_like(u))
        frames = x.shape[-1] // self.stride
        z = torch.cat([pitch.view(len(x), frames, -1), bands.reshape(len(x), frames, -1)], 2).transpose(1, 2)
        if self.network is None:
            return z
        return z + F.pad(self.network(x).float(), (0, 0, self.parts // 2, 0))


class HarmonicDecoder(nn.Module):
    """z [B, P + L E, F] -> x [B, 1, F * 160 L].

    Log amplitudes of pulses and noise are those of the bands, as if the latents held nothing else, plus what the
    network says: it speaks from the first step on, like a vocoder of old. The phase of the pulses goes back to where
    the voiced stretch began: a long file decoded in pieces differs where one lasts longer than the context.

    bands, parts                 E, L
    width, hidden, slow, layers  `slow` blocks over frames, then `layers` blocks over parts
    n_fft                        of its spectra, two a part
    """

    channels = 1
    noise: Tensor
    window: Tensor
    reading: Tensor
    breath: Tensor

    def __init__(
        self, bands: int = 32, parts: int = 4, width: int = 256, hidden: int = 768, slow: int = 2, layers: int = 4,
        n_fft: int = 320,
    ) -> None:
        super().__init__()
        _check(parts)
        if n_fft % 2 or n_fft < PART:
            raise ValueError(f"decoder.n_fft must be even and at least {PART}, got {n_fft}")
        self.stride, self.parts, self.n_fft, self.step = PART * parts, parts, n_fft, PART // 2
        self.bands, self.bins = bands, n_fft // 2 + 1
        self.embed = nn.Linear(parts * (bands + 1), width)
        self.norm = nn.LayerNorm(width)
        self.slow = nn.ModuleList(FrameBlock(width, hidden, 1 / (slow + layers)) for _ in range(slow))
        self.expand = nn.Linear(width, parts * width)
        self.blocks = nn.ModuleList(FrameBlock(width, hidden, 1 / (slow + layers)) for _ in range(layers))
        self.final = nn.LayerNorm(width)
        self.out = nn.Linear(width, 2 * 3 * self.bins)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            self.out.weight.mul_(0.05)
        self.spectrum = Spectrum(n_fft, self.step, padding="inner")
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("reading", band_reading(bands, n_fft), persistent=False)
        # how far noise lies below the pulses where it is voiced, as log amplitude: little at high frequencies
        self.register_buffer("breath", torch.linspace(2.0, 0.5, self.bins), persistent=False)
        seed = torch.Generator().manual_seed(0)
        noise = torch.randn(3 * (bands * parts + parts // 2), 2 * parts * 2 * self.bins, generator=seed)
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        count = self.parts // 2
        with torch.autocast(z.device.type, enabled=False):
            rows = z.float().transpose(1, 2)
            hertz, voiced = read_pitch(rows[..., :count].flatten(1))
            pulses = self.spectrum(pulse_train(hertz, voiced, 2 * PART)[:, None])[:, 0].transpose(1, 2)
            tone = [torch.where(voiced, (hertz / 150).log2(), 0.0), voiced.float()]
            heard = torch.cat([rows[..., count:], *(part.view(len(z), -1, count) for part in tone)], 2)
        y = self.norm(self.embed(heard))
        for block in self.slow:
            y = block(y)
        y = self.expand(y).reshape(len(z), -1, y.shape[-1])
        for block in self.blocks:
            y = block(y)
        with torch.autocast(z.device.type, enabled=False):
            said = self.out(self.final(y.float())).reshape(len(z), -1, 3, self.bins)
            envelope = self._envelope(rows[..., count:])
            still = torch.where(voiced.repeat_interleave(4, 1)[..., None], self.breath, 0.0)
            loud = (envelope + said[:, :, 0]).clamp(max=4).exp()
            rough = (envelope - still + said[:, :, 2]).clamp(max=4).exp()
            return self._samples(pulses * torch.polar(loud, said[:, :, 1]) + self._noise(rows) * rough)[:, None]

    def _envelope(self, rows: Tensor) -> Tensor:
        """[B, F, L E] -> log amplitudes [B, N, K]: lines between the bands and between the parts."""
        parts = rows.reshape(len(rows), -1, self.bands)
        fine = F.interpolate(parts.transpose(1, 2), scale_factor=2.0, mode="linear", align_corners=False)
        return 0.5 * (fine.transpose(1, 2) @ self.reading * SPREAD + CENTRE)

    @torch.no_grad()
    def _noise(self, rows: Tensor) -> Tensor:
        """complex64 [B, N, K] as independent noise: sines of many turns of random directions of three frames."""
        padded = F.pad(rows, (0, 0, 1, 1))
        near = torch.cat([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], 2)
        # unit variance of samples, after frames that know nothing of each other were laid over each other
        wave = (8 * (near @ self.noise)).sin() * math.sqrt(self.window.square().sum() / self.step * self.n_fft)
        return torch.view_as_complex(wave.reshape(len(rows), -1, self.bins, 2).contiguous())

    def _samples(self, spectra: Tensor) -> Tensor:
        """[B, N, K] -> [B, N * step]: windowed again, laid over each other, divided by what the windows sum to."""
        frames = torch.fft.irfft(spectra, self.n_fft) * self.window
        cut, length = (self.n_fft - self.step) // 2, frames.shape[1] * self.step
        total = _overlap(frames, self.step)[:, cut : cut + length]
        weight = _overlap(self.window.square().expand(1, frames.shape[1], -1), self.step)[:, cut : cut + length]
        return total / weight


def smooth(power: Tensor, width: Tensor) -> Tensor:
    """float32 [B, N, K]: means over `width` [B, N] frequencies around each, broken ones included.

    Over one pitch the ripple of harmonics is gone, which the pitch tells anyway (CheapTrick: Morise 2015).
    """
    last = power.shape[-1] - 1
    # the spectrum goes on mirrored beyond its ends
    wide = torch.cat([power[..., 1:32].flip(-1), power, power[..., -32:-1].flip(-1)], -1).double()
    total = F.pad(wide.cumsum(-1), (1, 0))
    middle = torch.arange(last + 1, device=power.device) + 31.5
    half = width[..., None].double() / 2

    def until(place: Tensor) -> Tensor:
        below = place.floor().long().clamp(0, total.shape[-1] - 2)
        return torch.lerp(total.gather(-1, below), total.gather(-1, below + 1), place - below)

    return ((until(middle + half) - until(middle - half)) / (2 * half)).float()


def _check(parts: int) -> None:
    if parts < 2 or parts % 2:
        raise ValueError(f"parts must be an even number, got {parts}")


def read_pitch(value: Tensor) -> tuple[Tensor, Tensor]:
    """The first channels of the latents, in order of time, [B, P F] -> (Hz, voiced bool)."""
    u = ((value + 1 - GAP) / (2 - GAP)).clamp(0, 1)
    return LOWEST * (HIGHEST / LOWEST) ** u, value > GAP / 2 - 1


@torch.no_grad()
def pulse_train(hertz: Tensor, voiced: Tensor, hop: int) -> Tensor:
    """float32 [B, n * hop] of unit power where pitches [B, n] are voiced: cos(p) + cos(2 p) + ... below Nyquist.

    Pitch moves evenly in log frequency from the middle of a stretch of `hop` samples to that of the next; the phase p
    starts anew where a voiced stretch begins, so that nothing before it matters.
    """
    log2 = hertz.double().log2()
    # unvoiced neighbours hold the pitch of the voiced side
    later = torch.where(voiced, log2, torch.cat([log2[:, 1:], log2[:, -1:]], 1))
    later = torch.where(voiced | F.pad(voiced[:, 1:], (0, 1)), later, torch.cat([log2[:, :1], log2[:, :-1]], 1))
    rate = _spread(later, hop).exp2()
    on = voiced.repeat_interleave(hop, 1)
    turns = torch.where(on, rate / RATE, 0.0).cumsum(1)
    starts = on & ~F.pad(on[:, :-1], (1, 0))
    since = turns - torch.where(starts, turns, 0.0).cummax(1).values
    phase = math.pi * (since % 1)
    count = (0.475 * RATE / rate).floor()
    half = phase.sin()
    flat = half.abs() < 1e-6
    total = ((2 * count + 1) * phase).sin() / torch.where(flat, 1.0, half)
    pulses = torch.where(flat, count, (total - 1) / 2) * (2 / count).sqrt()
    gate = _spread(voiced.double(), hop).clamp(0, 1)
    return (pulses * gate * on).float()


def band_reading(bands: int, n_fft: int) -> Tensor:
    """float32 [E, K]: values of the bands -> straight lines over mel between the middles of the bands."""
    fine = mel_filters(RATE, 2 * (RATE // 2), bands)  # a frequency a Hz
    middles = fine.argmax(1).double()
    places = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * RATE / n_fft
    mel, at = (2595 * (1 + hertz / 700).log10() for hertz in (middles, places))
    above = torch.searchsorted(mel, at).clamp(1, bands - 1)
    share = ((at - mel[above - 1]) / (mel[above] - mel[above - 1])).clamp(0, 1)
    table = torch.zeros(len(at), bands, dtype=torch.float64)
    table.scatter_(1, above[:, None] - 1, 1 - share[:, None]).scatter_add_(1, above[:, None], share[:, None])
    return table.T.float().contiguous()


def _spread(values: Tensor, hop: int) -> Tensor:
    """[B, F] -> [B, F * hop]: straight lines between the middles of frames."""
    return F.interpolate(values[:, None], scale_factor=float(hop), mode="linear", align_corners=False)[:, 0]


def _overlap(frames: Tensor, step: int) -> Tensor:
    """[B, N, n] -> [B, (N - 1) * step + n]."""
    length = (frames.shape[1] - 1) * step + frames.shape[2]
    return F.fold(frames.transpose(1, 2), (1, length), (1, frames.shape[2]), stride=(1, step))[:, 0, 0]


