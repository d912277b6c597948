"""Pitch by correlation: right on tones that glide, silent on noise, local, the same in pieces."""

from __future__ import annotations

import math

import pytest
import torch

from mmtok.nn.pitch import HIGHEST, LOWEST, RATE, PitchTracker

HOP = 320


def glide(low: float, high: float, seconds: float = 2.0, harmonics: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """(samples [T], Hz [T]) of a voice whose pitch swings between two values."""
    t = torch.arange(int(seconds * RATE), dtype=torch.float64) / RATE
    hertz = low * (high / low) ** (0.5 - 0.5 * torch.cos(2 * math.pi * 0.8 * t))
    phase = 2 * math.pi * (hertz / RATE).cumsum(0)
    x = torch.stack([torch.cos(k * phase) / k * (k * hertz < 7000) for k in range(1, harmonics)]).sum(0)
    g = torch.Generator().manual_seed(0)
    return (0.1 * x + 0.003 * torch.randn(len(x), generator=g)).float(), hertz


def hertz_of(u: torch.Tensor) -> torch.Tensor:
    return LOWEST * (HIGHEST / LOWEST) ** u.double()


@pytest.mark.parametrize(("low", "high"), [(70, 140), (110, 220), (180, 380)])
def test_a_gliding_voice_is_followed(low, high):
    x, wanted = glide(low, high)
    u, voiced = PitchTracker(HOP)(x[None])
    assert u.shape == voiced.shape == (1, len(x) // HOP)
    inner = slice(3, -3)
    cents = 1200 * (hertz_of(u)[0] / wanted[HOP // 2 :: HOP]).log2().abs()
    assert voiced[0, inner].all() and cents[inner].max() < 60 and cents[inner].median() < 20


def test_noise_and_silence_have_no_pitch():
    g = torch.Generator().manual_seed(1)
    _, voiced = PitchTracker(HOP)(torch.stack([0.2 * torch.randn(RATE, generator=g), torch.zeros(RATE)]))
    assert voiced[0].float().mean() < 0.1 and not voiced[1].any()


def test_one_wild_frame_does_not_break_a_stretch():
    x, wanted = glide(120, 160)
    x[50 * HOP : 50 * HOP + 200] = 0
    u, voiced = PitchTracker(HOP)(x[None])
    assert voiced[0, 45:56].all()
    assert (1200 * (hertz_of(u)[0] / wanted[HOP // 2 :: HOP]).log2().abs())[45:56].max() < 120


def test_reach_is_how_far_a_sample_is_felt():
    tracker, (x, _) = PitchTracker(HOP), glide(100, 200)
    u, voiced = tracker(x[None])
    other = x.clone()
    other[40 * HOP : 41 * HOP] = torch.randn(HOP, generator=torch.Generator().manual_seed(2))
    v, now = tracker(other[None])
    felt = ((u != v) | (voiced != now))[0].nonzero().flatten()
    assert len(felt) and 40 - tracker.reach <= felt.min() and felt.max() <= 40 + tracker.reach


def test_items_of_a_batch_do_not_meet():
    (a, _), (b, _) = glide(90, 120), glide(200, 300)
    both, alone = PitchTracker(HOP)(torch.stack([a, b])), PitchTracker(HOP)(b[None])
    assert torch.equal(both[0][1:], alone[0]) and torch.equal(both[1][1:], alone[1])
