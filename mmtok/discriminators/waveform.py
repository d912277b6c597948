"""Discriminators of audio samples: several periods, several scales (HiFi-GAN, arXiv 2010.05646).

Legend: B batch, C channels (each judged alone), T samples, P period.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from mmtok.discriminators.base import MapChoice, Stack, Verdict, levelled, mono
from mmtok.nn.weight_norm import weight_norm


class MultiPeriod(nn.Module):
    """x [B, C, T] in [-1, 1] -> one logit map a period: samples folded to [T / P, P], convolved along time ("MPD").

    periods     P of the sub-discriminators
    widths      channels of the convolutions of kernel 5: stride 3, the last one 1. BigCodec: 16, 64, 256, 512, 512
    last        kernel of the convolution to logits (BigCodec: 2)
    level       removes the mean and scales the peak to 0.8 first (DAC)
    always_pad  a whole period is reflected at the end even when P divides T (DAC)
    maps        see `Stack`: "all" as in HiFi-GAN, "hidden" as in DAC and BigCodec, "vocos"
    """

    def __init__(
        self, periods: list[int] | None = None, widths: list[int] | None = None, last: int = 3, level: bool = False,
        always_pad: bool = False, maps: MapChoice = "all", slope: float = 0.1,
    ) -> None:
        super().__init__()
        self.periods = [2, 3, 5, 7, 11] if periods is None else list(periods)
        widths = [32, 128, 512, 1024, 1024] if widths is None else list(widths)
        self.level, self.always_pad = level, always_pad
        self.stacks = nn.ModuleList(_period_stack(widths, last, slope, maps) for _ in self.periods)

    def forward(self, x: Tensor) -> Verdict:
        x = mono(x)
        x = levelled(x) if self.level else x
        found = [stack(self._folded(x, period)) for period, stack in zip(self.periods, self.stacks, strict=True)]
        return Verdict([logits for logits, _ in found], [maps for _, maps in found])

    def _folded(self, x: Tensor, period: int) -> Tensor:
        missing = period - x.shape[-1] % period if self.always_pad else -x.shape[-1] % period
        if missing:
            x = F.pad(x, (0, missing), mode="reflect")
        return x.view(*x.shape[:2], -1, period)


class MultiScale(nn.Module):
    """x [B, C, T] in [-1, 1] -> one logit map a scale: the samples, then averages over 4 at stride 2 ("MSD").

    scales  how many; the first carries spectral normalization, the others weight normalization
    widths  channels of the convolutions
    maps    see `Stack`
    """

    def __init__(
        self, scales: int = 3, widths: list[int] | None = None, maps: MapChoice = "all", slope: float = 0.1
    ) -> None:
        super().__init__()
        widths = [128, 128, 256, 512, 1024, 1024, 1024] if widths is None else list(widths)
        if len(widths) != len(_SCALE_LAYERS):
            raise ValueError(f"MultiScale.widths: {len(_SCALE_LAYERS)} numbers, got {len(widths)}")
        self.stacks = nn.ModuleList(_scale_stack(widths, slope, maps, spectral=not index) for index in range(scales))

    def forward(self, x: Tensor) -> Verdict:
        x = mono(x)
        found = []
        for index, stack in enumerate(self.stacks):
            x = F.avg_pool1d(x, 4, 2, padding=2) if index else x
            found.append(stack(x))
        return Verdict([logits for logits, _ in found], [maps for _, maps in found])


_SCALE_LAYERS = ((15, 1, 1), (41, 2, 4), (41, 2, 16), (41, 4, 16), (41, 4, 16), (41, 1, 16), (5, 1, 1))


def _period_stack(widths: list[int], last: int, slope: float, maps: MapChoice) -> Stack:
    strides = [3] * (len(widths) - 1) + [1]
    layers: list[nn.Module] = [
        weight_norm(nn.Conv2d(inputs, outputs, (5, 1), (stride, 1), (2, 0)))
        for inputs, outputs, stride in zip([1, *widths], widths, strides, strict=False)
    ]
    return Stack([*layers, weight_norm(nn.Conv2d(widths[-1], 1, (last, 1), 1, (1, 0)))], slope, maps)


def _scale_stack(widths: list[int], slope: float, maps: MapChoice, spectral: bool) -> Stack:
    norm = spectral_norm if spectral else weight_norm
    layers: list[nn.Module] = [
        norm(nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, groups=min(groups, inputs, outputs)))
        for inputs, outputs, (kernel, stride, groups) in zip([1, *widths], widths, _SCALE_LAYERS, strict=False)
    ]
    return Stack([*layers, norm(nn.Conv1d(widths[-1], 1, 3, 1, 1))], slope, maps)
