"""Convolutions over 3x3 pixels with a quarter of the products: Winograd's F(4x4, 3x3) (arXiv 1509.09308).

Legend: B batch, T frames, k frames of the kernel, C channels in, O out, H W pixels, th tw tiles of 4x4 outputs.

Tiles of 6x6 pixels and the kernels are taken to 36 points, where the convolution is a product of matrices, and back.
The points 0, +-0.7, +-1.4 and infinity keep the error of float32 at about six times that of summing directly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

POINTS = (0.0, 0.7, -0.7, 1.4, -1.4)
TILES = 2048  # so many at a time, which bounds the memory of what lies between
FEW = 8  # tiles for which a product of matrices would take another way through the library, with other sums
NARROW = 256  # with fewer channels the steps to and from the points cost what the products save (measured)


def fits(conv: nn.Conv3d) -> bool:
    """Whether `WinogradConv3d` can stand for a convolution, and is faster on a CPU."""
    padding = conv.padding
    return (
        conv.kernel_size[1:] == (3, 3) and conv.stride == (1, 1, 1) and conv.dilation == (1, 1, 1) and conv.groups == 1
        and not isinstance(padding, str) and tuple(padding) == (0, 1, 1)
        and min(conv.in_channels, conv.out_channels) >= NARROW
    )  # fmt: skip


class WinogradConv3d(nn.Conv3d):
    """A frozen kernel k x 3 x 3 with `fits`, float32: x [B, C, T, H, W] -> [B, O, T - k + 1, H, W].

    It keeps weight and bias, and holds four times the weight beside them, in a form that is not saved.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, padding=(0, 1, 1),  # type: ignore[arg-type]
            bias=conv.bias is not None, device="meta",
        )  # fmt: skip
        self.weight, self.bias = conv.weight, conv.bias
        there, back, kernel = transforms()
        w = kernel @ conv.weight.detach().double() @ kernel.T  # [O, C, k, 6, 6]
        # a tuple hides tensors from state_dict
        self._points = (w.flatten(3).permute(2, 3, 1, 0).float().contiguous(),)  # [k, 36, C, O]
        self._there, self._back = (torch.kron(m, m).float() for m in (there, back))

    def run(self, x: Tensor) -> Tensor:
        """The convolution; the result is channels-last in memory."""
        k, (batch, _, frames, high, wide) = self.kernel_size[0], x.shape
        tiles = -(-high // 4) * -(-wide // 4) * batch
        step = max(1, TILES // tiles)
        parts = [self._some(x[:, :, at : at + step + k - 1]) for at in range(0, frames - k + 1, step)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return y.permute(0, 4, 1, 2, 3)

    def _some(self, x: Tensor) -> Tensor:
        """[B, C, t, H, W] -> [B, t - k + 1, H, W, O]."""
        batch, channels, frames, high, wide = x.shape
        rows, columns, out = -(-high // 4), -(-wide // 4), frames - self.kernel_size[0] + 1
        ran = max(out, -(-FEW // (rows * columns * batch)))  # with empty frames behind
        frames = ran + self.kernel_size[0] - 1
        padded = x.new_zeros(batch, frames, 4 * rows + 2, 4 * columns + 2, channels)
        padded[:, : x.shape[2], 1 : high + 1, 1 : wide + 1] = x.permute(0, 2, 3, 4, 1)
        s = padded.stride()
        patches = padded.as_strided(
            (6, 6, batch, frames, rows, columns, channels), (s[2], s[3], s[0], s[1], 4 * s[2], 4 * s[3], s[4])
        )
        points = (self._there @ patches.reshape(36, -1)).view(36, batch, frames, rows * columns, channels)
        total: Tensor | None = None
        for i, kernel in enumerate(self._points[0]):
            part = points[:, :, i : i + ran].reshape(36, -1, channels)
            total = torch.bmm(part, kernel) if total is None else total.baddbmm_(part, kernel)
        assert total is not None
        y = (self._back @ total.view(36, -1)).view(4, 4, batch, ran, rows, columns, -1)
        y = y.permute(2, 3, 4, 0, 5, 1, 6).reshape(batch, ran, 4 * rows, 4 * columns, -1)
        if self.bias is not None:
            y += self.bias
        return y[:, :out, :high, :wide].contiguous()


def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices float64 of pixels to points [6, 6], of points to outputs [4, 6] and of kernels to points [6, 3].

    y = back ((kernel w) * (there d)) is the correlation of six values d with three weights w: interpolation through
    `POINTS` and infinity, transposed. Rows are scaled by powers of two to sizes near one.
    """
    points = torch.tensor(POINTS, dtype=torch.float64)

    def powers(count: int) -> Tensor:
        last = torch.eye(count, dtype=torch.float64)[-1:]
        return torch.cat([points[:, None] ** torch.arange(count, dtype=torch.float64), last])

    there, back, kernel = torch.linalg.inv(powers(6)).T, powers(4).T, powers(3)
    scale = torch.exp2(there.abs().amax(1).log2().round())
    return there / scale[:, None], back, kernel * scale[:, None]
