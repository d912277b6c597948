"""ELU from the exponential: torch's values and gradients, in every layout and type."""

import pytest
import torch
import torch.nn.functional as F

from mmtok.nn.elu import ELU


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_values_equal_torch(dtype, last):
    torch.manual_seed(0)
    x = torch.cat([torch.randn(2, 8, 100), 1e-4 * torch.randn(2, 8, 100), 200 * torch.randn(2, 8, 100)], 2).to(dtype)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if last else x
    before, y = x.clone(), ELU()(x)
    assert torch.equal(x, before) and y.dtype == dtype and y.stride() == x.stride()
    tolerance = {torch.float32: 1e-7, torch.float64: 0, torch.bfloat16: 1e-7}[dtype]
    torch.testing.assert_close(y, F.elu(x), rtol=0, atol=tolerance)
    assert ELU()(torch.tensor([float("nan")])).isnan().all()


def test_gradients_equal_torch():
    torch.manual_seed(0)
    x = torch.randn(1000)
    found = []
    for elu in (ELU(), F.elu):
        given = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(elu(given).square().sum(), given, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), given)
        found.append((first.detach(), second))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
