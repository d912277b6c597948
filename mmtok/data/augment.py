"""More from few photographs: quarter turns and other colours on top of a crop."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from mmtok.data.decode import EncodedImage
from mmtok.data.transforms import Transform

_TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


class Augmented(Transform):
    """Another transform's crop, turned and recoloured at random.

    A tokenizer trained on tens of photographs remembers them: measured on `image-tiny`, LPIPS-alex .27 on crops of its
    training photographs and .36 on others at the same PSNR to WebP. Large sets need none of this.

    crop   the transform that cuts
    turn   probability of a turn by 90, 180 or 270 degrees (before the cut, so the target may have any shape)
    swap   probability of a random order of the three colours
    gamma  every colour is raised to exp(u), u uniform in [-gamma, gamma]
    gain   every colour is scaled by 1 + u, u uniform in [-gain, gain], around the middle grey
    """

    def __init__(
        self, crop: Transform, turn: float = 0.5, swap: float = 0.3, gamma: float = 0.3, gain: float = 0.2
    ) -> None:
        if not (0 <= turn <= 1 and 0 <= swap <= 1):
            raise ValueError(f"transform: turn and swap are probabilities, got {turn} and {swap}")
        if gamma < 0 or not 0 <= gain < 1:
            raise ValueError(f"transform: gamma must not be negative and gain lie in [0, 1), got {gamma} and {gain}")
        self.crop, self.turn, self.swap, self.gamma, self.gain = crop, turn, swap, gamma, gain

    def __call__(self, image: EncodedImage, size: tuple[int, int], rng: random.Random) -> Image.Image:
        turn = rng.choice(_TURNS) if rng.random() < self.turn else None
        sideways = turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)
        out = self.crop(image, (size[1], size[0]) if sideways else size, rng)
        if turn is not None:
            out = out.transpose(turn)
        order = rng.sample(range(3), 3) if rng.random() < self.swap else [0, 1, 2]
        curves = [self._curve(rng) for _ in range(3)]
        pixels = np.asarray(out)[..., order]
        return Image.fromarray(np.stack([curve[pixels[..., c]] for c, curve in enumerate(curves)], -1))

    def _curve(self, rng: random.Random) -> np.ndarray:
        """uint8 [256]: what becomes of each value of one colour."""
        values = np.linspace(0, 1, 256) ** np.exp(rng.uniform(-self.gamma, self.gamma))
        values = (values - 0.5) * (1 + rng.uniform(-self.gain, self.gain)) + 0.5
        return np.round(values.clip(0, 1) * 255).astype(np.uint8)
