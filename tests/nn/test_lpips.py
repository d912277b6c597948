"""Our LPIPS equals the `lpips` package on the same weights, in values and in gradients."""

import lpips as reference
import pytest
import torch

from mmtok import weights
from mmtok.nn.lpips import LPIPS


def _reference(net: str) -> torch.nn.Module:
    module = reference.LPIPS(net=net, pnet_rand=True, verbose=False)
    convs = [layer for layer in module.net.modules() if isinstance(layer, torch.nn.Conv2d)]
    for conv, (weight, bias) in zip(convs, weights.backbone(net), strict=True):
        conv.weight.data.copy_(weight)
        conv.bias.data.copy_(bias)
    return module.eval()


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_equals_the_lpips_package(net):
    torch.manual_seed(0)
    ours, theirs = LPIPS(net), _reference(net)
    x = (torch.rand(3, 3, 70, 64) * 2 - 1).requires_grad_()
    y = torch.rand(3, 3, 70, 64) * 2 - 1
    expected = theirs(x, y).flatten()
    (theirs_grad,) = torch.autograd.grad(expected.sum(), x)
    got = ours(x, y)
    (ours_grad,) = torch.autograd.grad(got.sum(), x)
    assert got.shape == (3,) and got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-3, atol=1e-6)


def test_equal_flat_images_have_a_finite_gradient():
    x = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)
    distance = LPIPS("alex")(x, x.detach())
    distance.sum().backward()
    assert distance.item() == 0 and torch.isfinite(x.grad).all()


def test_bfloat16_autocast_stays_close():
    torch.manual_seed(0)
    model, x, y = LPIPS("alex"), torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    exact = model(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(x, y)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.05, atol=0.01)


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match="lpips"):
        LPIPS("alex")(torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64))
