"""Distances between spectra of audio, each as one published system defines it: values of two of them never compare.

Legend: B batch, C channels, T samples, M mel bands or frequencies, N frames.

x is float [B, C, T] in [-1, 1]. Where `batch.lengths` says how long each item is, only its own frames count: the value
is the mean over all true frames, whatever the padding holds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtok.losses.base import Term, reconstruction_of
from mmtok.nn.spectrum import MelSpectrum, Spectrum
from mmtok.types import Batch, Reconstruction


class VocosMel(Term):
    """mean |ln mel(x) - ln mel(y)|: one scale, HTK mel, magnitudes clipped at 1e-7 (Vocos, WavTokenizer: weight 45)."""

    def __init__(self, sample_rate: int, n_fft: int = 1024, hop: int = 256, n_mels: int = 100) -> None:
        super().__init__()
        self.mel = MelSpectrum(sample_rate, n_fft, hop, n_mels)

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        ours, theirs, counted = _pair(self.mel, recon, batch, "VocosMel")
        return _mean((ours.clamp(min=1e-7).log() - theirs.clamp(min=1e-7).log()).abs(), counted)


class DACMel(Term):
    """Sum over window lengths of mean |log10 mel(x) - log10 mel(y)|: Slaney mel, clipped at 1e-5 (DAC, BigCodec: 15).

    windows  of the scales; the hop is a quarter of each
    n_mels   bands of each scale
    """

    def __init__(
        self, sample_rate: int, windows: list[int] | None = None, n_mels: list[int] | None = None
    ) -> None:
        super().__init__()
        windows = [32, 64, 128, 256, 512, 1024, 2048] if windows is None else windows
        n_mels = [5, 10, 20, 40, 80, 160, 320] if n_mels is None else n_mels
        if len(windows) != len(n_mels):
            raise ValueError(f"DACMel.n_mels: one number a window, got {len(n_mels)} for {len(windows)}")
        self.scales = nn.ModuleList(
            MelSpectrum(sample_rate, window, window // 4, bands, scale="slaney", area=True)
            for window, bands in zip(windows, n_mels, strict=True)
        )

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        terms = []
        for mel in self.scales:
            ours, theirs, counted = _pair(mel, recon, batch, "DACMel")
            terms.append(_mean((ours.clamp(min=1e-5).log10() - theirs.clamp(min=1e-5).log10()).abs(), counted))
        return torch.stack(terms).sum()


class EnCodecMel(Term):
    """Sum over windows of mean |mel(x) - mel(y)| + alpha mean (log10 mel(x) - log10 mel(y))^2 (audiocraft: "msspec").

    Power mel spectra, HTK, reflected by (window - hop) / 2, hop a quarter of the window; `floor` is added in the log.

    windows     of the scales
    normalized  spectra are divided by the root of the window's energy, the sum by the sum of all factors
    alphas      alpha = sqrt(window - 1) instead of 1 (the formula of arXiv 2210.13438)
    """

    def __init__(
        self, sample_rate: int, windows: list[int] | None = None, n_mels: int = 64, f_min: float = 64.0,
        f_max: float | None = None, normalized: bool = True, alphas: bool = False, floor: float = 1e-5,
    ) -> None:
        super().__init__()
        windows = [64, 128, 256, 512, 1024] if windows is None else windows
        self.scales = nn.ModuleList(
            MelSpectrum(
                sample_rate, window, window // 4, n_mels, f_min=f_min, f_max=f_max, power=2.0, padding="fill",
                normalized=normalized,
            )
            for window in windows
        )
        self.alphas = [(window - 1) ** 0.5 if alphas else 1.0 for window in windows]
        self.total = sum(self.alphas) + len(windows) if normalized else 1.0
        self.floor = floor

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        terms = []
        for alpha, mel in zip(self.alphas, self.scales, strict=True):
            ours, theirs, counted = _pair(mel, recon, batch, "EnCodecMel")
            terms.append(_mean((ours - theirs).abs(), counted))
            logs = (ours + self.floor).log10() - (theirs + self.floor).log10()
            terms.append(alpha * _mean(logs.square(), counted))
        return torch.stack(terms).sum() / self.total


class SpeechTokenizerMel(Term):
    """mean |ln mel(x) - ln mel(y)|, HTK mel with triangles of equal area, clipped at 1e-5 (SpeechTokenizer, DM-Codec).

    Four such terms are published: (1024, 240), (512, 120), (256, 60), (128, 30) with weights 45, 1, 1, 1.
    """

    def __init__(self, sample_rate: int, n_fft: int = 1024, hop: int = 240, n_mels: int = 80) -> None:
        super().__init__()
        self.mel = MelSpectrum(sample_rate, n_fft, hop, n_mels, area=True, padding="inner")

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        ours, theirs, counted = _pair(self.mel, recon, batch, "SpeechTokenizerMel")
        return _mean((ours.clamp(min=1e-5).log() - theirs.clamp(min=1e-5).log()).abs(), counted)


class DACSTFT(Term):
    """Sum over window lengths of mean |log10 S^2 - log10 R^2| + mean |S - R|, magnitudes clipped at 1e-5 (DAC)."""

    def __init__(self, windows: list[int] | None = None) -> None:
        super().__init__()
        windows = [2048, 512] if windows is None else windows
        self.scales = nn.ModuleList(Spectrum(window, window // 4) for window in windows)

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        terms = []
        for spectrum in self.scales:
            ours, theirs, counted = _pair(spectrum, recon, batch, "DACSTFT")
            ours, theirs = ours.abs(), theirs.abs()
            logs = 2 * (ours.clamp(min=1e-5).log10() - theirs.clamp(min=1e-5).log10())
            terms += [_mean(logs.abs(), counted), _mean((ours - theirs).abs(), counted)]
        return torch.stack(terms).sum()


class MultiResolutionSTFT(Term):
    """Mean over scales of spectral convergence + mean |ln S - ln R| (arXiv 1910.11480; audiocraft takes a tenth).

    Convergence is |S - R| / |R| with Frobenius norms over the whole batch; magnitudes are clipped at 1e-7 in power.

    n_ffts, hops, windows  of the scales; X-Codec: hops 120, 240, 300 and windows 480, 960, 1200
    """

    def __init__(
        self, n_ffts: list[int] | None = None, hops: list[int] | None = None, windows: list[int] | None = None
    ) -> None:
        super().__init__()
        n_ffts = [1024, 2048, 512] if n_ffts is None else n_ffts
        hops = [120, 240, 50] if hops is None else hops
        windows = [600, 1200, 240] if windows is None else windows
        if not len(n_ffts) == len(hops) == len(windows):
            raise ValueError("MultiResolutionSTFT: n_ffts, hops and windows must be equally long")
        self.scales = nn.ModuleList(Spectrum(*sizes) for sizes in zip(n_ffts, hops, windows, strict=True))

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        terms, tiny = [], torch.finfo(torch.float32).eps
        for spectrum in self.scales:
            ours, theirs, counted = _pair(spectrum, recon, batch, "MultiResolutionSTFT")
            ours, theirs = ((s.real.square() + s.imag.square()).clamp(min=1e-7).sqrt() for s in (ours, theirs))
            if counted is not None:
                ours, theirs = ours * counted[:, None, None], theirs * counted[:, None, None]
            terms.append((ours - theirs).norm() / (theirs.norm() + tiny))
            terms.append(_mean(((ours + tiny).log() - (theirs + tiny).log()).abs(), counted))
        return torch.stack(terms).sum() / len(self.scales)


class CompressedSTFT(Term):
    """Mean over window lengths of (1 - phase) mean (|S|^p - |R|^p)^2 + phase mean |S|S|^(p-1) - R|R|^(p-1)|^2.

    Power-law compressed spectra (Ephrat et al., arXiv 1804.03619; both terms: Braun and Tashev, arXiv 2009.12286): the
    complex part asks for phases, in loud and in soft frequencies alike, which no distance of magnitudes does.

    windows  of the scales; the hop is a quarter of each. Spectra are divided by the root of the window's energy
    power    p, at most 1
    phase    share of the complex part, 0 to 1
    """

    def __init__(self, windows: list[int] | None = None, power: float = 0.3, phase: float = 0.5) -> None:
        super().__init__()
        if not 0 < power <= 1 or not 0 <= phase <= 1:
            raise ValueError(f"CompressedSTFT: power and phase lie between 0 and 1, got {power} and {phase}")
        windows = [256, 1024] if windows is None else windows
        self.scales = nn.ModuleList(Spectrum(window, window // 4, normalized=True) for window in windows)
        self.power, self.phase = power, phase

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        terms = []
        for spectrum in self.scales:
            ours, theirs, counted = _pair(spectrum, recon, batch, "CompressedSTFT")
            (size, a, b), (wanted, c, d) = self._compressed(ours), self._compressed(theirs)
            apart = (1 - self.phase) * (size - wanted).square() + self.phase * ((a - c).square() + (b - d).square())
            terms.append(_mean(apart, counted))
        return torch.stack(terms).mean()

    def _compressed(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Magnitude, real and imaginary part; the floor keeps gradients of silence finite."""
        energy = s.real.square() + s.imag.square() + 1e-6
        gain = energy.pow((self.power - 1) / 2)
        return energy.sqrt() * gain, s.real * gain, s.imag * gain


def _pair(
    view: nn.Module, recon: Reconstruction, batch: Batch, term: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Views [B, C, M, N] of the reconstruction and of the original, and which frames count: bool [B, N] or None."""
    x, y = reconstruction_of(recon, term), batch.x
    if x.shape != y.shape or x.dim() != 3:
        found = f"x is {list(y.shape)}, decoded {list(x.shape)}"
        raise ValueError(f"objective.terms: {term} takes audio [B, C, T]; {found}")
    ours = view(x, batch.lengths)
    with torch.no_grad():
        theirs = view(y, batch.lengths)
    if batch.lengths is None:
        return ours, theirs, None
    frames = view.frames(batch.lengths)  # type: ignore[operator]
    return ours, theirs, torch.arange(ours.shape[-1], device=ours.device) < frames[:, None]


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    """Mean of [B, C, M, N] over all elements, or over those of the frames that count."""
    if counted is None:
        return values.mean()
    each = values.shape[1] * values.shape[2]
    return (values * counted[:, None, None]).sum() / (counted.sum() * each).clamp(min=1)
