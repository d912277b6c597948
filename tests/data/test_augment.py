"""Turns and colours: still the same crop, exactly the asked size, all of it from the sample's own generator."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from mmtok.data.augment import Augmented
from mmtok.data.decode import EncodedImage
from mmtok.data.transforms import CenterCrop, RandomResizedCrop


def ramp() -> EncodedImage:
    """32 x 32: red grows to the right, green downwards, blue is 64."""
    y, x = np.mgrid[:32, :32] * 8
    stream = io.BytesIO()
    Image.fromarray(np.stack([x, y, np.full_like(x, 64)], -1).astype(np.uint8)).save(stream, "PNG")
    return EncodedImage(stream.getvalue())


def pixels(transform: Augmented, seed: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.asarray(transform(ramp(), size, random.Random(seed))).astype(int)


def test_without_strength_it_is_the_crop() -> None:
    plain = np.asarray(CenterCrop()(ramp(), (32, 32), random.Random(0)))
    assert np.array_equal(pixels(Augmented(CenterCrop(), turn=0, swap=0, gamma=0, gain=0), 3), plain)


def test_turns_are_quarter_turns_of_the_same_pixels() -> None:
    plain = np.asarray(CenterCrop()(ramp(), (32, 32), random.Random(0)))
    transform = Augmented(CenterCrop(), turn=1, swap=0, gamma=0, gain=0)
    seen = {next(k for k in (1, 2, 3) if np.array_equal(pixels(transform, seed), np.rot90(plain, k)))
            for seed in range(20)}
    assert seen == {1, 2, 3}


def test_colours_are_reordered_and_curved_but_stay_monotone() -> None:
    plain = np.asarray(CenterCrop()(ramp(), (32, 32), random.Random(0)))
    swapped = Augmented(CenterCrop(), turn=0, swap=1, gamma=0, gain=0)
    orders = {tuple(int(value) for value in pixels(swapped, seed)[2, 1]) for seed in range(40)}
    assert len(orders) == 6 and all(sorted(order) == sorted(plain[2, 1].tolist()) for order in orders)
    curved = pixels(Augmented(CenterCrop(), turn=0, swap=0, gamma=0.5, gain=0.3), 1)
    assert np.abs(curved - plain).max() > 5 and (np.diff(curved[0, :, 0]) >= 0).all()


def test_the_target_may_have_any_shape_and_the_seed_decides_all() -> None:
    transform = Augmented(RandomResizedCrop())
    for seed in range(12):
        out = pixels(transform, seed, (16, 24))
        assert out.shape == (16, 24, 3)
        assert np.array_equal(out, pixels(transform, seed, (16, 24)))
    assert not np.array_equal(pixels(transform, 0), pixels(transform, 1))


@pytest.mark.parametrize(("key", "value"), [("turn", 1.5), ("swap", -0.1), ("gamma", -1.0), ("gain", 1.0)])
def test_strengths_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        Augmented(CenterCrop(), **{key: value})
