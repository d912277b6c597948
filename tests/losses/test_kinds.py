import torch
from torch import nn

from mmtok.discriminators import PatchGAN, PatchGAN3d, VideoViT
from mmtok.losses import L1, Adversarial, NoisyNonSaturating, OnImages, OnVideos
from mmtok.training import Objective
from mmtok.types import Batch, Reconstruction


def recon(x):
    return Reconstruction((x * 0.5).requires_grad_(), None)


def test_terms_rest_at_batches_of_the_other_kind():
    terms = {
        "l1": L1(), "image": OnImages(Adversarial(PatchGAN(8, 1))), "video": OnVideos(Adversarial(PatchGAN3d(8, 1, 0))),
    }  # fmt: skip
    weights = {"l1": 1.0, "image": 0.1, "image_disc": 1.0, "video": 0.1, "video_disc": 1.0}
    objective = Objective(terms, weights)
    assert len(objective.discriminators()) == 2
    torch.manual_seed(0)
    cases = {(2, 3, 16, 16): "image", (2, 3, 1, 16, 16): "image", (2, 3, 5, 16, 16): "video"}
    for shape, kind in cases.items():
        batch = Batch.of(torch.rand(shape) * 2 - 1)
        out = recon(batch.x)
        found = objective.generator(out, batch, 0)
        assert set(found) == {"l1", kind}
        assert set(objective.discriminator(out, batch, 0)) == {f"{kind}_disc"}
        grad, = torch.autograd.grad(found[kind], out.x)
        assert grad.shape == batch.x.shape and grad.abs().sum() > 0


def test_noisy_labels_stay_within_their_bounds_and_cap_confidence():
    loss = NoisyNonSaturating(noise=1e6)  # so noisy that every label sits at its bound
    real = torch.tensor([0.0], requires_grad=True)
    logits = torch.linspace(-3, 3, 601)
    fake = torch.full((1,), -50.0)
    at = [float(loss.discriminator(z[None], fake)) for z in logits]
    assert abs(float(logits[int(torch.tensor(at).argmin())]) - torch.logit(torch.tensor(0.7))) < 0.02
    plain = NoisyNonSaturating(noise=0.0)
    value = plain.discriminator(real, torch.tensor([1.0]))
    expected = nn.functional.binary_cross_entropy_with_logits
    both = expected(real, torch.ones(1)) / 2 + expected(torch.tensor([1.0]), torch.zeros(1)) / 2
    torch.testing.assert_close(value, both)


def test_video_vit_judges_clips_of_any_size_by_place_and_time():
    torch.manual_seed(0)
    net = VideoViT((2, 4, 4), 16, 2, 2)
    for size in ((4, 8, 8), (1, 5, 9), (3, 12, 8)):
        assert net(torch.randn(2, 3, *size)).shape == (2, 1)
    x = torch.randn(1, 3, 4, 8, 8)
    assert abs(float((net(x) - net(x[:, :, [2, 3, 0, 1]])).detach())) > 1e-5
    y = x.clone().requires_grad_()
    net(y).sum().backward()
    assert bool((y.grad.abs().amax((1, 3, 4)) > 0).all())
