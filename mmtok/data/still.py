"""Images among videos: an image is a video of one frame (joint training as in OmniTokenizer, arXiv 2406.09399)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmtok.data import decode, decode_video
from mmtok.data.decode import DRAFT_MARGIN, EncodedImage, to_uint8
from mmtok.data.decode_video import Plan, as_is

EXTENSIONS = tuple(ext for ext in decode.EXTENSIONS if ext not in decode_video.EXTENSIONS)  # a GIF is a video


class StillImage:
    """The reader protocol of videos for an image file; its one frame is shown at 0 s, its rate counts as 1."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        """Raises BadSample: empty, unsupported, corrupt, too_large."""
        self._image = EncodedImage(data, max_pixels)
        self.times: NDArray[np.float64] = np.zeros(1)
        self.rate = 1.0

    def __len__(self) -> int:
        return 1

    def nearest(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Always frame 0."""
        return np.zeros(len(seconds), dtype=np.int64)

    def frames(self, numbers: Sequence[int], plan: Plan = as_is) -> Tensor:
        """uint8 [3, len(numbers), H, W], upright RGB: the image, repeated. Raises BadSample: corrupt, truncated."""
        fit = plan(self._image.size)
        height, width = fit.size
        reduce = min(a / b for a, b in zip(self._image.size, fit.scaled, strict=True))
        whole = self._image.pixels(reduce / DRAFT_MARGIN).resize(fit.scaled[::-1], Image.Resampling.BICUBIC)
        cut = whole.crop((fit.left, fit.top, fit.left + width, fit.top + height))
        if fit.flip:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_uint8(cut)[:, None].repeat(1, len(numbers), 1, 1)
