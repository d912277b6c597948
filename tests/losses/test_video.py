"""Frame terms against the image terms they stand for."""

import math

import pytest
import torch

from mmtok.losses import FrameLikelihood, FramePerceptual, Perceptual
from mmtok.types import Batch, Reconstruction


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.rand(2, 3, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 3, 32, 32) * 2 - 1


def recon(x):
    return Reconstruction(x, None)


def each(x, y, t):
    return Perceptual("alex")(recon(x[:, :, t]), Batch.of(y[:, :, t]), 0)


def test_all_frames_is_the_mean_over_frames(pair):
    x, y = pair
    expected = torch.stack([each(x, y, t) for t in range(3)])
    torch.testing.assert_close(FramePerceptual("alex", frames=None)(recon(x), Batch.of(y), 0), expected.mean())
    torch.testing.assert_close(FramePerceptual("alex", frames=7)(recon(x), Batch.of(y), 0), expected.mean())
    one = FramePerceptual("alex", frames=1)
    drawn = torch.stack([one(recon(x), Batch.of(y), 0) for _ in range(12)])
    distance = (drawn[:, None] - expected).abs()
    assert float(distance.amin(1).max()) < 1e-6 and len(distance.argmin(1).unique()) > 1
    with pytest.raises(ValueError, match="FramePerceptual.frames"):
        FramePerceptual("alex", frames=0)


def test_likelihood_follows_its_formula_and_learns_its_variance(pair):
    x, y = pair
    term = FrameLikelihood(net="alex")
    torch.nn.init.constant_(term.log_variance, 0.5)
    loss = term(recon(x), Batch.of(y), 0)
    per_frame = 3 * 32 * 32
    lpips = torch.stack([each(x, y, t) for t in range(3)]).mean()
    error = (x - y).abs().mean() + lpips
    torch.testing.assert_close(loss, per_frame * (error / math.exp(0.5) + 0.5))
    assert [name for name, _ in term.named_parameters()] == ["log_variance"]
    # the best variance is the mean error
    torch.nn.init.constant_(term.log_variance, float(error.log()))
    term(recon(x), Batch.of(y), 0).backward()
    assert abs(float(term.log_variance.grad)) < 1e-3 * per_frame
