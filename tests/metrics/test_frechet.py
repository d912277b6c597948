"""Frechet distance and Inception Score equal torch-fidelity and torchmetrics on the same features."""

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as theirs
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric

from mmtok import weights
from mmtok.metrics.extractors import InceptionFeatures, VGG16Features
from mmtok.metrics.frechet import Moments, ReferenceMoments, count_name, frechet_distance
from mmtok.metrics.inception_score import InceptionScore
from mmtok.nn.lpips import LPIPS


def features(n, d, seed, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g)).relu() + shift


@pytest.mark.parametrize("n, d", [(400, 32), (24, 96)], ids=["full rank", "fewer images than features"])
def test_distance_equals_torch_fidelity(n, d):
    a, b = features(n, d, 0), features(n + 7, d, 1, 0.3)
    real, fake = Moments(d), Moments(d)
    for part in a.split(10):
        real.update(part)
    for part in b.split(9):
        fake.update(part)
    stats = [fid_features_to_statistics(x.double()) for x in (a, b)]
    expected = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(real.gaussian(), fake.gaussian()) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(real.gaussian(), real.gaussian()) == pytest.approx(0, abs=1e-6 * expected)


def test_distance_equals_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 48

        def forward(self, x):
            return x.float().flatten(1)

    g = torch.Generator().manual_seed(3)
    a = torch.randint(0, 200, (90, 3, 4, 4), generator=g, dtype=torch.uint8)
    b = torch.randint(20, 256, (80, 3, 4, 4), generator=g, dtype=torch.uint8)
    fid = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    fid.update(a, real=True)
    fid.update(b, real=False)
    real, fake = Moments(48), Moments(48)
    real.update(a.flatten(1))
    fake.update(b.flatten(1))
    assert frechet_distance(real.gaussian(), fake.gaussian()) == pytest.approx(float(fid.compute()), rel=1e-6)


def test_the_split_half_floor_depends_on_names_not_on_order():
    x, keys = features(200, 16, 5), tuple(f"image{i}" for i in range(200))
    once, shuffled = ReferenceMoments(16), ReferenceMoments(16)
    once.update(x, keys)
    for i in reversed(range(0, 200, 8)):
        shuffled.update(x[i : i + 8], keys[i : i + 8])
    assert once.floor() == pytest.approx(shuffled.floor(), rel=1e-9) and once.floor() > 0
    assert once.whole().count == 200
    cov = once.whole().gaussian().cov
    np.testing.assert_allclose(cov.numpy(), np.cov(x.double().numpy(), rowvar=False), atol=1e-9)
    few = ReferenceMoments(16)
    few.update(x[:1], keys[:1])
    assert few.floor() is None
    with pytest.raises(ValueError, match="at least 2 items"):
        few.whole().gaussian()
    with pytest.raises(ValueError, match="NaN"):
        few.update(x[:1] * float("nan"), keys[:1])


def test_inception_score_equals_torch_fidelity_with_one_split():
    logits = torch.randn(120, 30, generator=torch.Generator().manual_seed(0)) * 3
    metric = InceptionScore(30)
    for part in logits.split(50):
        metric.update(part)
    expected = isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    assert metric.compute() == {"inception_score_1split": pytest.approx(expected, rel=1e-9)}


@pytest.fixture
def random_inception(tmp_path, monkeypatch):
    """A file of random weights in the published layout."""
    with monkeypatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = theirs.FeatureExtractorInceptionV3("x", ["2048"])
    path = tmp_path / weights.INCEPTION_FID.name
    torch.save(network.state_dict(), path)
    return path


def test_inception_features_are_torch_fidelity_s(random_inception):
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    ours, logits = InceptionFeatures(random_inception, "fd_random")(images)
    layers, path = ["2048", "logits_unbiased"], str(random_inception)
    net = theirs.FeatureExtractorInceptionV3("x", layers, feature_extractor_weights_path=path)
    assert torch.equal(ours, net(images)[0]) and torch.equal(logits, net(images)[1])
    assert ours.shape == (2, 2048) and logits.shape == (2, 1008)


def test_rfid_takes_the_real_file_only(random_inception, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="another metric"):
        InceptionFeatures.load(random_inception)
    monkeypatch.delenv("MMTOK_WEIGHTS_DIR", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(ValueError, match="weights-inception-2015-12-05-6726825d.pth.*MMTOK_WEIGHTS_DIR.*fd_vgg16"):
        InceptionFeatures.load()


def test_vgg16_features_are_torchvision_s_relu5_3():
    import torchvision

    model = torchvision.models.vgg16(weights=None).features.eval()
    convs = [layer for layer in model if isinstance(layer, torch.nn.Conv2d)]
    for conv, (weight, bias) in zip(convs, weights.backbone("vgg"), strict=True):
        conv.weight.data.copy_(weight)
        conv.bias.data.copy_(bias)
    images = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8)
    ours, logits = VGG16Features(LPIPS("vgg"))(images)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = model[:30]((images / 255 - mean) / std).mean((2, 3))  # up to the ReLU after conv5_3
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=2e-3)
    assert logits is None and ours.shape == (2, 512)


def test_counts_in_keys():
    assert [count_name(n) for n in (50000, 5000, 76, 0)] == ["50k", "5k", "76", "0"]
