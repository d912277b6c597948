"""Real held-out speech, and noise to lay over it."""

from pathlib import Path

import pytest
import torch

import mmtok.data
from mmtok.data.decode_audio import EncodedAudio

SOUNDS = Path(mmtok.data.__file__).parent / "sounds" / "heldout"
CLIPS = {name: SOUNDS / f"{name}.g722" for name in ("it_carlo/vm-tomakecall", "ru_ivrvoice/conf-locked")}


def read(path):
    return torch.from_numpy(EncodedAudio(path.read_bytes(), "g722").read()[0])


@pytest.fixture(scope="session")
def speech():
    """name -> [T] at 16 kHz."""
    return {name: read(path) for name, path in CLIPS.items()}


@pytest.fixture(scope="session")
def clip(speech):
    return next(iter(speech.values()))


def noisy(wave, decibels, seed=0):
    """White noise at this signal-to-noise ratio."""
    noise = torch.randn(wave.shape, generator=torch.Generator().manual_seed(seed))
    noise *= (wave.square().mean() / noise.square().mean() / 10 ** (decibels / 10)).sqrt()
    return (wave + noise).clamp(-1, 1)


@pytest.fixture(scope="session")
def degraded():
    return noisy
