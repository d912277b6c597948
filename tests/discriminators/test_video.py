"""Video discriminators: what a patch sees, any length, frames alone."""

import pytest
import torch

from mmtok.discriminators import PatchGAN, PatchGAN3d, PerFrame


def test_patches_see_space_and_time():
    model = PatchGAN3d(width=4).eval()
    x = torch.zeros(1, 3, 21, 160, 160, requires_grad=True)
    logits = model(x)
    assert logits.shape[:2] == (1, 1) and logits.shape[3:] == (18, 18)
    logits[0, 0, logits.shape[2] // 2, 9, 9].backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    extent = (seen.amax(0) - seen.amin(0) + 1).tolist()
    # two layers before time is halved, three behind it
    assert extent == [1 + 2 * 2 + 3 * 4, 70, 70]


@pytest.mark.parametrize("frames", [1, 2, 5, 17])
def test_any_length(frames):
    logits = PatchGAN3d(width=4, layers=2)(torch.rand(2, 3, frames, 32, 32))
    assert logits.shape[2] == -(-frames // 2) and bool(logits.isfinite().all())
    with pytest.raises(ValueError, match="time_layers"):
        PatchGAN3d(layers=2, time_layers=2)


def test_frames_alone_are_images():
    torch.manual_seed(0)
    image = PatchGAN(width=4, layers=2).eval()
    x = torch.rand(2, 3, 3, 32, 32)
    logits = PerFrame(image)(x)
    torch.testing.assert_close(logits[4:5], image(x[1:2, :, 1]))
