"""PSNR, SSIM and LPIPS equal independent libraries on the same tensors."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import (
    peak_signal_noise_ratio as tm_psnr,
)
from torchmetrics.functional.image import (
    structural_similarity_index_measure as tm_ssim,
)

from mmtok.metrics.pixels import PSNR, SSIM, to_uint8


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (5, 3, 40, 33), generator=g, dtype=torch.uint8)
    real[:3] = torch.nn.functional.avg_pool2d(real[:3].float(), 9, 1, 4).round().to(torch.uint8)
    noise = torch.randn(real.shape, generator=g) * torch.tensor([1.0, 4, 9, 16, 30]).view(5, 1, 1, 1)
    return real, (real.float() + noise).round().clamp(0, 255).to(torch.uint8)


def test_psnr_is_the_mean_over_images_of_skimage_and_torchmetrics(pair):
    real, fake = pair
    metric = PSNR()
    scores = metric.update(real, fake)
    theirs = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255) for a, b in zip(real, fake, strict=True)]
    np.testing.assert_allclose(scores.numpy(), theirs, rtol=1e-12)
    per_image = tm_psnr(fake.double(), real.double(), data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean")
    assert metric.compute()["psnr"] == pytest.approx(float(per_image), rel=1e-6)
    pooled = tm_psnr(fake.double(), real.double(), data_range=255.0)
    assert metric.compute()["psnr"] - float(pooled) > 3  # the two conventions must not be confused


def test_equal_images_are_capped(pair):
    metric = PSNR()
    metric.update(pair[0], pair[0])
    assert metric.compute() == {"psnr": 100.0}


def test_ssim_equals_torchmetrics_and_skimage(pair):
    real, fake = pair
    scores = SSIM().update(real, fake)
    # torchmetrics averages over mirrored borders too; inside them its map is ours
    _, full = tm_ssim(fake.double(), real.double(), data_range=255.0, reduction="none", return_full_image=True)
    torch.testing.assert_close(scores, full[..., 5:-5, 5:-5].mean((1, 2, 3)), rtol=1e-6, atol=1e-7)
    skimage = [
        structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=255, gaussian_weights=True, sigma=1.5,
                              use_sample_covariance=False)
        for a, b in zip(real, fake, strict=True)
    ]
    np.testing.assert_allclose(scores.numpy(), skimage, rtol=1e-9)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        SSIM().update(real[..., :8], fake[..., :8])


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_the_reference_package(net):
    import lpips as reference

    from mmtok.metrics.perceptual import LPIPSMetric
    from mmtok.nn.lpips import LPIPS
    from mmtok.weights import backbone

    theirs = reference.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    convs = [layer for layer in theirs.net.modules() if isinstance(layer, torch.nn.Conv2d)]
    for conv, (weight, bias) in zip(convs, backbone(net), strict=True):
        conv.weight.data.copy_(weight)
        conv.bias.data.copy_(bias)
    g = torch.Generator().manual_seed(1)
    real, fake = torch.randint(0, 256, (2, 3, 3, 64, 64), generator=g, dtype=torch.uint8)
    metric = LPIPSMetric(LPIPS(net))
    scores = metric.update(real, fake)
    with torch.no_grad():
        expected = theirs(real.float() / 127.5 - 1, fake.float() / 127.5 - 1).flatten().double()
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    assert list(metric.compute()) == [f"lpips_{net}"]
    # the cached reference features serve the same tensor only
    torch.testing.assert_close(metric.update(fake, real), expected, rtol=1e-4, atol=1e-6)


def test_every_grey_level_survives_rounding_and_63_do_not_survive_truncation():
    levels = torch.arange(256, dtype=torch.uint8)
    signed = levels.float() / 255 * 2 - 1
    assert torch.equal(to_uint8(signed), levels)
    lost = (to_uint8(signed, "truncate") != levels).sum()
    assert 40 < int(lost) < 80
    with pytest.raises(ValueError, match="rounding"):
        to_uint8(signed, "floor")


def test_wrong_input_is_refused(pair):
    real, fake = pair
    with pytest.raises(ValueError, match="uint8"):
        PSNR().update(real.float(), fake)
    with pytest.raises(ValueError, match="differ in shape"):
        PSNR().update(real, fake[:2])
    with pytest.raises(ValueError, match="no images"):
        PSNR().compute()
