"""Residual quantization over a list of grid sizes with one codebook: VAR, ImageFolder, TokenFlow.

Legend: B batch, D channels, S latent grid, S_i grid of scale i, P number of shared convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.keep import Shapes
from mmtok.quantizers.base import Quantizer, check_codes, full_precision, masked_mean
from mmtok.types import Quantized


class ScaleResidual(Quantizer):
    """Each scale codes what the running sum left over, on its own small grid (VAR, arXiv 2404.02905, algorithms 1, 2).

    z [B, D, *S] -> one grid int64 [B, K, *S_i] per scale. Per scale: area-average the residual to S_i, quantize,
    enlarge to S, pass the convolution of the scale, add. Latents of another size than the last scale get grids in
    proportion. What is not kept adds nothing to the sum. Gradients as in VAR: one straight-through step on the sum.

    Losses are means over scales, each over the items that keep it: `commit` and `codebook` compare the running sum with
    the latents (the latter trains codebook and convolutions); `sample_entropy` and others are the quantizer's own.

    quantizer  shared by all scales
    scales     side of each grid, coarse first; the last is the latents' own
    phi        convolutions after enlarging (VAR, ImageFolder); None for TokenFlow
    mode       of torch.nn.functional.interpolate when enlarging: "bicubic" for images, "linear", "trilinear", "nearest"
    gain       values of scale i are multiplied by gain ** i (ImageFolder's binary variant)
    drop       chance that a training batch skips one scale other than the first (TokenFlow: 0.1)
    sum_losses False: the quantizer's own losses at every scale, code against residual (TokenFlow)
    """

    value_gradient = True

    def __init__(
        self, quantizer: Quantizer, scales: list[int], phi: SharedPhi | None = None, mode: str = "bicubic",
        gain: float = 1.0, drop: float = 0.0, sum_losses: bool = True,
    ) -> None:
        super().__init__()
        if not scales or min(scales) < 1 or list(scales) != sorted(scales):
            raise ValueError(f"quantizer.scales: sides of at least 1, coarse first, got {scales}")
        if len(quantizer.codebook_sizes) != 1:
            raise ValueError("quantizer.quantizer: a shared quantizer has a single grid")
        self.dim = quantizer.dim
        self.quantizer = quantizer
        self.scales = list(scales)
        self.phi = phi
        self.mode, self.gain, self.drop, self.sum_losses = mode, gain, drop, sum_losses
        self.codebook_sizes = quantizer.codebook_sizes * len(scales)

    def shapes(self, positions: tuple[int, ...]) -> Shapes:
        last, count = self.scales[-1], len(self.codebook_sizes[0])
        # n * side / last rounded half up, in integers
        return tuple((count, *(max(1, (2 * n * side + last) // (2 * last)) for n in positions)) for side in self.scales)

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        rest, total = z.detach(), torch.zeros_like(z)
        dropped = self._dropped()
        grids: list[Tensor] = []
        sums: dict[str, list[Tensor]] = {}
        stats: dict[str, Tensor] = {}
        for index, shape in enumerate(self.shapes(tuple(z.shape[2:]))):
            mask = None if keep is None else (keep[index].expand(z.shape[0], *shape),)
            # the value of `rest` with the gradient of z, which the losses of the quantizer may want
            out = self.quantizer(_shrink(rest + (z - z.detach()), shape[1:]), mask)
            if index != dropped:
                value = self._value(out.grids, index, z.shape[2:], mask)
                rest, total = rest - value.detach(), total + value
            grids.append(out.grids[0])
            for name, loss in self._losses(out, total, z, mask).items():
                sums.setdefault(name, []).append(loss)
            stats |= {f"{name}_{index}": found for name, found in out.stats.items()}
        if self.training:
            total = z + (total - z).detach()
            if keep is not None and (nothing := _nothing(keep, z)) is not None:
                total = total.masked_fill(nothing, 0)
        return Quantized(total, tuple(grids), {name: torch.stack(found).mean() for name, found in sums.items()}, stats)

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        return self.partial_sums(grids, keep)[-1]

    def partial_sums(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        """float32 [B, D, *S] after 1, 2, ... scales. ValueError for codes out of range."""
        check_codes(grids, self.codebook_sizes)
        size = grids[-1].shape[2:]
        total = torch.zeros(grids[0].shape[0], self.dim, *size, device=grids[0].device)
        sums = []
        for index, grid in enumerate(grids):
            mask = None if keep is None else (keep[index].expand_as(grid),)
            total = total + self._value((grid,), index, size, mask)
            sums.append(total)
        return sums

    def _losses(self, out: Quantized, total: Tensor, z: Tensor, mask: tuple[Tensor] | None) -> dict[str, Tensor]:
        """One scale's losses, over the items that keep any of it."""
        if not self.sum_losses:
            return out.losses
        kept = None if mask is None else mask[0].flatten(1).any(1)
        losses = {name: loss for name, loss in out.losses.items() if name not in ("commit", "codebook", "index")}
        losses["commit"] = masked_mean((total.detach() - z).square(), kept)
        losses["codebook"] = masked_mean((total - z.detach()).square(), kept)
        return losses

    def _value(
        self, grids: tuple[Tensor, ...], index: int, size: torch.Size, mask: tuple[Tensor] | None = None
    ) -> Tensor:
        """What a scale adds, differentiable in codebook and convolution; zero for items that do not keep it."""
        value = self.quantizer.decode(grids, mask)
        if self.gain != 1:
            value = value * self.gain**index
        if value.shape[2:] != size:
            value = F.interpolate(value.contiguous(), size=size, mode=self.mode)
        if self.phi is not None:
            value = self.phi(value, index / max(1, len(self.scales) - 1))
            if mask is not None:  # its bias must not speak for an item that sends nothing of this scale
                value = value.masked_fill(~mask[0].flatten(1).any(1).view(-1, *[1] * (value.dim() - 1)), 0)
        return value

    def _dropped(self) -> int | None:
        if not self.training or len(self.scales) < 2 or float(torch.rand(())) >= self.drop:
            return None
        return int(torch.randint(1, len(self.scales), ()))


class SharedPhi(nn.Module):
    """x -> (1 - strength) x + strength conv3(x), with P convolutions shared by neighbouring scales.

    count     P; the number of scales gives each its own, 1 shares one
    strength  share of the convolution (VAR: 0.5)
    rank      axes of the latent grid: 1, 2 or 3
    """

    def __init__(self, dim: int, count: int = 4, strength: float = 0.5, rank: int = 2) -> None:
        super().__init__()
        if count < 1 or rank not in (1, 2, 3):
            raise ValueError(f"quantizer.phi: count must be positive and rank 1, 2 or 3, got {count} and {rank}")
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        self.convs = nn.ModuleList(conv(dim, dim, 3, padding=1) for _ in range(count))
        self.strength = strength
        # VAR places four convolutions wider than the formula it uses for any other number
        edge = 1 / 3 / count if count == 4 else 1 / 2 / count
        # plain floats in NumPy's order of operations: places such as 2/9 lie halfway between two ticks
        step = (1 - edge - edge) / max(1, count - 1)
        self.ticks = [i * step + edge for i in range(count)]

    def forward(self, x: Tensor, place: float) -> Tensor:
        """x [B, D, *S]; place in [0, 1], coarsest scale 0: the convolution with the nearest tick is used."""
        nearest = min(range(len(self.ticks)), key=lambda i: abs(self.ticks[i] - place))
        return x * (1 - self.strength) + self.convs[nearest](x) * self.strength


def _shrink(value: Tensor, size: tuple[int, ...]) -> Tensor:
    return value if tuple(value.shape[2:]) == size else F.interpolate(value, size, mode="area")


def _nothing(keep: tuple[Tensor, ...], z: Tensor) -> Tensor | None:
    """bool [B, 1, 1...]: items that send no code at all; None when there is none."""
    found = torch.stack([mask.flatten(1).any(1).expand(z.shape[0]) for mask in keep]).any(0)
    return None if bool(found.all()) else ~found.view(-1, *[1] * (z.dim() - 1))
