"""Convolutional image tokenizer with an embedded thumbnail, coded as a pyramid of grids that any prefix decodes.

Legend: B batch, H W image, h = H / 16, w = W / 16, D code dimension.

The first three latent channels carry the mean colour of each 16 x 16 square straight from the pixels, and the decoder
adds the enlarged thumbnail straight to its output; the convolutions learn only what a thumbnail lacks. A small model
so has the right colours after a hundred steps. With `mmtok.quantizers.multiscale.MultiScale` and a `FlatPrefix` tail,
the codes are a coarse-to-fine sequence whose every prefix decodes.
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
THUMBNAIL_GAIN = 3.0  # brings colours to the spread of the other latent channels, so that codes care for both


class PyramidEncoder(nn.Module):
    """x [B, 3, H, W] in [-1, 1] -> z [B, dim, H / 16, W / 16].

    channels  widths at 1/4, 1/8 and 1/16 of the size
    blocks    residual blocks at each
    """

    def __init__(
        self, dim: int = 16, channels: tuple[int, int, int] = (64, 96, 128), blocks: tuple[int, int, int] = (2, 2, 2)
    ) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.dim = dim
        self.stem = nn.Conv2d(3, fine, 6, stride=4, padding=1)
        self.levels = nn.Sequential(
            *_blocks(fine, blocks[0]), nn.Conv2d(fine, middle, 4, stride=2, padding=1),
            *_blocks(middle, blocks[1]), nn.Conv2d(middle, coarse, 4, stride=2, padding=1),
            *_blocks(coarse, blocks[2]),
        )
        self.norm = nn.GroupNorm(8, coarse)
        self.out = nn.Conv2d(coarse, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """H and W are multiples of 16."""
        z = self.levels(self.stem(x.contiguous(memory_format=torch.channels_last)))
        z = self.out(F.silu(self.norm(z)))
        thumbnail = F.avg_pool2d(x, STRIDE) * THUMBNAIL_GAIN
        return z.float() + F.pad(thumbnail.float(), (0, 0, 0, 0, 0, self.dim - 3))


class PyramidDecoder(nn.Module):
    """z [B, dim, h, w] and the masks of `num_grids` grids -> x [B, 3, 16 h, 16 w], not clamped.

    The masks enter as one channel a grid: where little was sent, the decoder must not take zeros for content.

    channels, blocks  as in the encoder, fine to coarse
    """

    def __init__(
        self, num_grids: int, dim: int = 16, channels: tuple[int, int, int] = (64, 96, 128),
        blocks: tuple[int, int, int] = (3, 3, 3),
    ) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.stem = nn.Conv2d(dim + num_grids, coarse, 3, padding=1)
        self.levels = nn.Sequential(
            *_blocks(coarse, blocks[2]), *_double(coarse, middle), *_blocks(middle, blocks[1]), *_double(middle, fine),
            *_blocks(fine, blocks[0]),
        )
        self.norm = nn.GroupNorm(8, fine)
        self.out = nn.Conv2d(fine, 48, 3, padding=1)
        # at the start the picture is the thumbnail
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor, keep: tuple[Tensor, ...]) -> Tensor:
        size = z.shape[2:]
        sent = [F.interpolate(mask[:, :1].expand(z.shape[0], 1, *mask.shape[2:]).float(), size=size) for mask in keep]
        x = self.levels(self.stem(torch.cat([z, *sent], 1).contiguous(memory_format=torch.channels_last)))
        x = F.pixel_shuffle(self.out(F.silu(self.norm(x))), 4).float()
        return x + F.interpolate(z[:, :3].float() / THUMBNAIL_GAIN, scale_factor=float(STRIDE), mode="bicubic")


class PyramidTokenizer(Tokenizer):
    """x [B, 3, H, W] -> one grid a scale -> x; any image size, padded to multiples of 16.

    encoder, decoder  with the same `dim` as the quantizer
    tail              `FlatPrefix` policies cut the sequence of all grids after any code
    """

    def __init__(
        self, encoder: PyramidEncoder, quantizer: Quantizer, decoder: PyramidDecoder, size: tuple[int, int] = (128, 128),
        tail: TailDrop | None = None,
    ) -> None:
        if encoder.dim != quantizer.dim:
            raise ValueError(f"tokenizer: encoder.dim is {encoder.dim}, the quantizer's {quantizer.dim}: make them equal")
        super().__init__(encoder, quantizer, decoder, (STRIDE, STRIDE), size, tail)


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [ResBlock2d(channels, channels, groups=8) for _ in range(count)]


def _double(channels: int, narrower: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, 4 * narrower, 3, padding=1), nn.PixelShuffle(2)]
