"""What the usage meter reads under depth drop; a schedule."""

import pytest
import torch

from mmtok.training import Exponential
from mmtok.training.meters import UsageMeter
from mmtok.types import Tokens


def test_depth_drop_is_counted():
    """Only sent codes count; the deepest codebook has its own figure."""
    meter = UsageMeter()
    assert meter.read() == {}
    codes = torch.tensor([[[0, 1, 2, 3], [3, 3, 3, 1]], [[0, 1, 2, 3], [0, 1, 2, 3]]])
    for depths in ([2, 1], [1, 1]):
        keep = (torch.arange(2) < torch.tensor(depths)[:, None])[:, :, None]
        meter.update(Tokens((codes,), (keep,), ((4, 4),), torch.full((2, 1), 40)))
    found = {name: float(value) for name, value in meter.read().items()}
    assert found["code/window_kept"] == (0.75 + 0.5) / 2
    assert found["code/window_last_usage"] == 0.5  # only codes 3 and 1 of the first item were sent
    assert found["code/window_usage"] == 0.75
    assert meter.read() == {}


def test_exponential_schedule():
    """DAC's: after the warm-up the rate shrinks by the same factor at every step."""
    schedule = Exponential(0.5, warmup=2)
    assert [schedule(step) for step in range(5)] == [0.5, 1.0, 1.0, 0.5, 0.25]
    with pytest.raises(ValueError, match="schedule.factor must lie in"):
        Exponential(1.5)
