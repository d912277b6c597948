"""Discriminators of short-time spectra of audio.

Legend: B batch, C channels, T samples, F frequencies, N frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.discriminators.base import MapChoice, Stack, Verdict, chosen, levelled, mono
from mmtok.nn.spectrum import Spectrum
from mmtok.nn.weight_norm import weight_norm


class MultiScaleSTFT(nn.Module):
    """x [B, C, T] in [-1, 1] -> one logit map an FFT size, from real and imaginary parts (EnCodec, arXiv 2210.13438).

    channels  C, judged together
    width     channels inside (published: 32)
    n_ffts    window lengths; the hop is a quarter of each, no padding
    dilations of the inner convolutions along time; each halves the frequencies
    slope     of the leaky ReLU: 0.2 in the paper's package, 0.3 in audiocraft
    maps      see `Stack`
    """

    def __init__(
        self, channels: int = 1, width: int = 32, n_ffts: list[int] | None = None, dilations: list[int] | None = None,
        slope: float = 0.2, maps: MapChoice = "hidden",
    ) -> None:
        super().__init__()
        n_ffts = [1024, 2048, 512, 256, 128] if n_ffts is None else list(n_ffts)
        dilations = [1, 2, 4] if dilations is None else list(dilations)
        self.spectra = nn.ModuleList(Spectrum(n, n // 4, padding="none", normalized=True) for n in n_ffts)
        self.stacks = nn.ModuleList(_dilated_stack(2 * channels, width, dilations, slope, maps) for _ in n_ffts)

    def forward(self, x: Tensor) -> Verdict:
        found = []
        for spectrum, stack in zip(self.spectra, self.stacks, strict=True):
            s = spectrum(x).transpose(2, 3)
            found.append(stack(torch.cat([s.real, s.imag], 1)))
        return Verdict([logits for logits, _ in found], [maps for _, maps in found])


class BandedSTFT(nn.Module):
    """x [B, C, T] in [-1, 1] -> one logit map an FFT size; each band has convolutions of its own (DAC, Vocos).

    The clip is levelled first: mean removed, peak at 0.8. Every channel is judged alone.

    n_ffts        window lengths; the hop is a quarter of each
    bands         shares of the frequencies
    width         channels inside
    match_stride  ceil(T / hop) frames (DAC); False: centred frames (Vocos)
    maps          see `Stack`; the first map of every band is the "first"
    """

    def __init__(
        self, n_ffts: list[int] | None = None, bands: list[tuple[float, float]] | None = None, width: int = 32,
        match_stride: bool = True, maps: MapChoice = "hidden",
    ) -> None:
        super().__init__()
        self.n_ffts = [2048, 1024, 512] if n_ffts is None else list(n_ffts)
        bands = [(0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)] if bands is None else bands
        self.match_stride, self.maps = match_stride, maps
        self.edges = [[(int(a * (n // 2 + 1)), int(b * (n // 2 + 1))) for a, b in bands] for n in self.n_ffts]
        self.spectra = nn.ModuleList(Spectrum(n, n // 4) for n in self.n_ffts)
        self.bands = nn.ModuleList(nn.ModuleList(_band_stack(width) for _ in bands) for _ in self.n_ffts)
        self.last = nn.ModuleList(weight_norm(nn.Conv2d(width, 1, 3, 1, 1)) for _ in self.n_ffts)

    def forward(self, x: Tensor) -> Verdict:
        x = levelled(mono(x))
        verdict = Verdict([], [])
        for index, n_fft in enumerate(self.n_ffts):
            spectrum = self._frames(x, n_fft, self.spectra[index])
            stacks = []
            for place, (low, high) in enumerate(self.edges[index]):
                stacks.append(_leaky(self.bands[index][place], spectrum[..., low:high]))  # type: ignore[index]
            logits = self.last[index](torch.cat([stack[-1] for stack in stacks], -1))
            verdict.logits.append(logits)
            verdict.maps.append(chosen(stacks, logits, self.maps))
        return verdict

    def _frames(self, x: Tensor, n_fft: int, spectrum: nn.Module) -> Tensor:
        """[B, 1, T] -> float [B, 2, N, F]."""
        if self.match_stride:
            hop = n_fft // 4
            pad = (n_fft - hop) // 2
            x = F.pad(x, (pad, pad + -x.shape[-1] % hop), mode="reflect")
        s = spectrum(x)
        s = s[..., 2:-2] if self.match_stride else s
        return torch.view_as_real(s[:, 0]).permute(0, 3, 2, 1)


class MultiMagnitude(nn.Module):
    """x [B, C, T] in [-1, 1] -> one logit map an FFT size, from magnitudes (BigCodec, X-Codec-2).

    n_ffts  window lengths. X-Codec-2: 78, 126, 206, 334, 542, 876, 1418, 2296
    overlap of the windows: the hop is n_fft / overlap (X-Codec-2: 2)
    width   channels of the first convolution; each of the three strided ones doubles them, up to 512
    maps    see `Stack`
    """

    def __init__(
        self, n_ffts: list[int] | None = None, overlap: int = 4, width: int = 32, maps: MapChoice = "hidden"
    ) -> None:
        super().__init__()
        n_ffts = [128, 256, 512, 1024, 2048] if n_ffts is None else list(n_ffts)
        self.spectra = nn.ModuleList(Spectrum(n, n // overlap) for n in n_ffts)
        self.stacks = nn.ModuleList(_image_stack(width, maps) for _ in n_ffts)

    def forward(self, x: Tensor) -> Verdict:
        x = mono(x)
        found = []
        for spectrum, stack in zip(self.spectra, self.stacks, strict=True):
            s = spectrum(x)
            found.append(stack((s.real.square() + s.imag.square()).clamp(min=1e-7).sqrt()))
        return Verdict([logits for logits, _ in found], [maps for _, maps in found])


class MultiResolution(nn.Module):
    """x [B, C, T] in [-1, 1] -> one logit map a resolution, from magnitudes under a rectangular window (UnivNet's MRD).

    As WavTokenizer and the first Vocos trained against it; later Vocos models use `BandedSTFT`.

    resolutions  (n_fft, hop) of each
    width        channels inside
    maps         see `Stack`
    log          judges (ln(magnitude + 1e-4) + 4.5) / 3 under a Hann window of unit energy instead: small networks see
                 what is soft, between harmonics for instance, many times sooner
    """

    def __init__(
        self, resolutions: list[tuple[int, int]] | None = None, width: int = 64, maps: MapChoice = "all",
        slope: float = 0.1, log: bool = False,
    ) -> None:
        super().__init__()
        sizes = [(1024, 256), (2048, 512), (512, 128)] if resolutions is None else resolutions
        self.spectra = nn.ModuleList(
            Spectrum(n_fft, hop, normalized=log, window="hann" if log else "ones") for n_fft, hop in sizes
        )
        self.stacks = nn.ModuleList(_narrowing_stack(width, slope, maps) for _ in sizes)
        self.log = log

    def forward(self, x: Tensor) -> Verdict:
        x = mono(x)
        found = [stack(self._seen(spectrum(x))) for spectrum, stack in zip(self.spectra, self.stacks, strict=True)]
        return Verdict([logits for logits, _ in found], [maps for _, maps in found])

    def _seen(self, spectrum: Tensor) -> Tensor:
        if not self.log:
            return spectrum.abs()
        power = spectrum.real.square() + spectrum.imag.square()  # the root has no gradient at 0
        return (((power + 1e-12).sqrt() + 1e-4).log() + 4.5) / 3


def _leaky(layers: nn.Module, x: Tensor) -> list[Tensor]:
    outputs = []
    for layer in layers:  # type: ignore[attr-defined]
        x = F.leaky_relu(layer(x), 0.1)
        outputs.append(x)
    return outputs


def _dilated_stack(inputs: int, width: int, dilations: list[int], slope: float, maps: MapChoice) -> Stack:
    layers: list[nn.Module] = [nn.Conv2d(inputs, width, (3, 9), padding=(1, 4))]  # published without weight norm
    layers += [
        weight_norm(nn.Conv2d(width, width, (3, 9), (1, 2), (dilation, 4), (dilation, 1))) for dilation in dilations
    ]
    layers += [weight_norm(nn.Conv2d(width, width, 3, padding=1)), weight_norm(nn.Conv2d(width, 1, 3, padding=1))]
    return Stack(layers, slope, maps)


def _band_stack(width: int) -> nn.ModuleList:
    sizes = [(2, (3, 9), 1), (width, (3, 9), 2), (width, (3, 9), 2), (width, (3, 9), 2), (width, (3, 3), 1)]
    return nn.ModuleList(
        weight_norm(nn.Conv2d(inputs, width, kernel, (1, stride), (1, kernel[1] // 2)))
        for inputs, kernel, stride in sizes
    )


def _image_stack(width: int, maps: MapChoice) -> Stack:
    widths = [min(width * 2**n, 512) for n in range(5)]
    layers: list[nn.Module] = [nn.Conv2d(1, width, 5, 2, 2)]
    layers += [nn.Conv2d(a, b, 5, 2, 2) for a, b in zip(widths[:3], widths[1:4], strict=True)]
    layers += [nn.Conv2d(widths[3], widths[4], 3, 1, 1), nn.Conv2d(widths[4], 1, 3, 1, 1)]
    for layer in layers:
        nn.init.normal_(layer.weight, 0.0, 0.02)  # type: ignore[arg-type]
    return Stack([weight_norm(layer) for layer in layers], 0.2, maps)


def _narrowing_stack(width: int, slope: float, maps: MapChoice) -> Stack:
    sizes = [
        (1, (7, 5), (2, 2), (3, 2)), (width, (5, 3), (2, 1), (2, 1)), (width, (5, 3), (2, 2), (2, 1)),
        (width, (3, 3), (2, 1), (1, 1)), (width, (3, 3), (2, 2), (1, 1)),
    ]  # fmt: skip
    layers: list[nn.Module] = [weight_norm(nn.Conv2d(inputs, width, *rest)) for inputs, *rest in sizes]  # type: ignore[arg-type]
    return Stack([*layers, weight_norm(nn.Conv2d(width, 1, 3, 1, 1))], slope, maps)
