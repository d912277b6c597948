"""Shapes, published sizes, and the blur filter against plain indexing."""

import torch
import torch.nn.functional as F

from mmtok.discriminators import BlurPatchGAN, PatchGAN
from mmtok.discriminators.blur_patchgan import Blur


def _count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts():
    # pix2pix prints 2.769 M for its discriminator of image pairs; VQGAN's sees three channels
    assert _count(PatchGAN(in_channels=6)) == 2_768_705
    assert _count(PatchGAN()) == 2_765_633
    # sum of the layers listed for TiTok: 5x5 stem, three 3x3 + GroupNorm stages, 1x1 and 5x5 heads
    layers = [(3, 128, 5), (128, 128, 3), (128, 256, 3), (256, 512, 3), (512, 512, 1), (512, 1, 5)]
    assert _count(BlurPatchGAN()) == sum(i * o * k * k + o for i, o, k in layers) + 2 * (128 + 256 + 512)


def test_patches_see_70_pixels():
    model = PatchGAN().eval()
    x = torch.zeros(1, 3, 256, 256, requires_grad=True)
    logits = model(x)
    assert logits.shape == (1, 1, 30, 30)
    logits[0, 0, 15, 15].backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


def test_blur_patchgan_gives_a_fixed_grid_for_any_size():
    model = BlurPatchGAN(width=32, grid=4)
    for size in ((64, 64), (33, 70)):
        assert model(torch.randn(2, 3, *size)).shape == (2, 1, 4, 4)


def test_blur_is_a_normalised_filter():
    x = torch.randn(2, 3, 10, 12)
    taps = torch.tensor([1.0, 3, 3, 1]) / 8
    padded = F.pad(x, (1, 1, 1, 1))
    rows = sum(taps[i] * padded[:, :, i : i + 9 : 2] for i in range(4))
    expected = sum(taps[i] * rows[..., i : i + 11 : 2] for i in range(4))
    torch.testing.assert_close(Blur()(x), expected)
    assert Blur()(torch.ones(1, 1, 9, 9)).shape == (1, 1, 5, 5)
