"""Convolutional image tokenizer with an embedded thumbnail, coded as a pyramid of grids that any prefix decodes.

Legend: B batch, H W image, h = H / 16, w = W / 16, D code dimension.

The first three latent channels carry the mean colour of each 16 x 16 square straight from the pixels, and the decoder
adds the enlarged thumbnail straight to its output; the convolutions learn only what a thumbnail lacks. A small model
so has the right colours after a hundred steps. The other channels leave the encoder with unit variance: left free,
they shrink until the codes hold colours alone (measured: to a tenth of the colours' spread after 800 steps). With
`mmtok.quantizers.multiscale.MultiScale` and a `FlatPrefix` tail, the codes are a coarse-to-fine sequence whose every
prefix decodes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.conv2d import ResBlock2d
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop
from mmtok.tokenizer import Tokenizer

STRIDE = 16
THUMBNAIL_GAIN = 3.0  # brings what a coarser scale leaves of the colours near unit variance, as the other channels


class PyramidEncoder(nn.Module):
    """x [B, 3, H, W] in [-1, 1] -> z [B, dim, H / 16, W / 16].

    dim       three colours and dim - 3 learned channels
    channels  widths at 1/4, 1/8 and 1/16 of the size
    blocks    residual blocks at each
    """

    def __init__(
        self, dim: int = 8, channels: tuple[int, int, int] = (64, 96, 128), blocks: tuple[int, int, int] = (2, 2, 2)
    ) -> None:
        super().__init__()
        if dim < 4:
            raise ValueError(f"encoder.dim: three colours and at least one channel of detail, got {dim}")
        fine, middle, coarse = channels
        self.dim = dim
        self.stem = nn.Conv2d(3, fine, 6, stride=4, padding=1)
        self.levels = nn.Sequential(
            *_blocks(fine, blocks[0]), nn.Conv2d(fine, middle, 4, stride=2, padding=1),
            *_blocks(middle, blocks[1]), nn.Conv2d(middle, coarse, 4, stride=2, padding=1),
            *_blocks(coarse, blocks[2]),
        )
        self.norm = nn.GroupNorm(8, coarse)
        self.out = nn.Conv2d(coarse, dim - 3, 1)
        self.spread = nn.BatchNorm2d(dim - 3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """H and W are multiples of 16."""
        z = self.levels(self.stem(x.contiguous(memory_format=torch.channels_last)))
        detail = self.spread(self.out(F.silu(self.norm(z))).float())
        thumbnail = F.avg_pool2d(x.float(), STRIDE) * THUMBNAIL_GAIN
        return torch.cat([thumbnail, detail], 1)


class PyramidDecoder(nn.Module):
    """z [B, dim, h, w] and the masks of `num_grids` grids -> x [B, 3, 16 h, 16 w], not clamped.

    The masks enter as one channel a grid: where little was sent, the decoder must not take zeros for content.

    channels, blocks  widths and residual blocks at 1/2, 1/4, 1/8 and 1/16 of the size
    """

    def __init__(
        self, num_grids: int, dim: int = 8, channels: tuple[int, int, int, int] = (32, 64, 96, 128),
        blocks: tuple[int, int, int, int] = (1, 3, 3, 3),
    ) -> None:
        super().__init__()
        finest, fine, middle, coarse = channels
        self.stem = nn.Conv2d(dim + num_grids, coarse, 3, padding=1)
        self.levels = nn.Sequential(
            *_blocks(coarse, blocks[3]), *_double(coarse, middle), *_blocks(middle, blocks[2]), *_double(middle, fine),
            *_blocks(fine, blocks[1]), *_double(fine, finest), *_blocks(finest, blocks[0]),
        )
        self.norm = nn.GroupNorm(8, finest)
        self.out = nn.Conv2d(finest, 12, 3, padding=1)
        # at the start the picture is the thumbnail
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor, keep: tuple[Tensor, ...]) -> Tensor:
        size = z.shape[2:]
        sent = [F.interpolate(mask[:, :1].expand(z.shape[0], 1, *mask.shape[2:]).float(), size=size) for mask in keep]
        x = self.levels(self.stem(torch.cat([z, *sent], 1).contiguous(memory_format=torch.channels_last)))
        x = F.pixel_shuffle(self.out(F.silu(self.norm(x))), 2).float()
        return x + F.interpolate(z[:, :3].float() / THUMBNAIL_GAIN, scale_factor=float(STRIDE), mode="bicubic")


class PyramidTokenizer(Tokenizer):
    """x [B, 3, H, W] -> one grid a scale -> x; any image size, padded to multiples of 16.

    encoder, decoder  with the same `dim` as the quantizer
    tail              `FlatPrefix` policies cut the sequence of all grids after any code
    """

    def __init__(
        self, encoder: PyramidEncoder, quantizer: Quantizer, decoder: PyramidDecoder,
        size: tuple[int, int] = (128, 128), tail: TailDrop | None = None,
    ) -> None:
        if encoder.dim != quantizer.dim:
            raise ValueError(f"tokenizer: encoder.dim is {encoder.dim}, quantizer.dim {quantizer.dim}: make them equal")
        super().__init__(encoder, quantizer, decoder, (STRIDE, STRIDE), size, tail)


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [ResBlock2d(channels, channels, groups=8) for _ in range(count)]


def _double(channels: int, narrower: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, 4 * narrower, 3, padding=1), nn.PixelShuffle(2)]
