"""Snake and ELU: the formulas in float64, in both memory layouts and types, on every path; gradients by difference."""

import pytest
import torch
import torch.nn.functional as F
from exact import PATHS
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.kernels import activations, forced
from mmtok.nn.snake import Snake, SnakeBeta


def laid_out(x, last):
    return x.transpose(1, 2).contiguous().transpose(1, 2) if last else x


@settings(max_examples=80, deadline=None)
@given(
    path=st.sampled_from(PATHS), batch=st.integers(0, 3), channels=st.integers(1, 40), length=st.integers(0, 90),
    scale=st.sampled_from([1e-6, 1.0, 40.0, 3e4, 1e7]), last=st.booleans(), threads=st.integers(1, 3),
    seed=st.integers(0, 1 << 20),
)
def test_snake_equals_its_formula(path, batch, channels, length, scale, last, threads, seed):
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    x = laid_out(torch.randn(batch, channels, length) * scale, last)
    alpha, inverse = torch.rand(channels) * 3 + 0.01, torch.rand(channels) * 30
    before = x.clone()
    with forced(path):
        y = activations.snake(x, alpha, inverse)
    wave = (alpha[:, None] * x).double()  # the product as float32 has it
    exact = x.double() + inverse.double()[:, None] * wave.sin().square()
    size = x.abs() + inverse[:, None] * wave.abs().clamp(max=1).square().float()
    assert y.shape == x.shape and y.dtype == x.dtype and torch.equal(x, before)
    assert not x.numel() or y.stride() == x.stride() or path == "torch"
    assert bool(((y - exact).abs() <= 4e-7 * size).all())


@pytest.mark.parametrize("path", PATHS)
def test_large_arrays_take_many_pieces(path):
    torch.manual_seed(0)
    x, alpha = torch.randn(2, 30, 3001), torch.rand(30) + 0.1
    with forced(path):
        first = activations.snake(x, alpha, 1 / alpha)
        last = activations.snake(laid_out(x, True), alpha, 1 / alpha)
        curve = activations.elu(x)
    assert torch.equal(first, last)
    exact = x.double() + (alpha.double()[:, None] * x.double()).sin().square() / alpha.double()[:, None]
    assert torch.allclose(first.double(), exact, atol=2e-6)
    assert torch.allclose(curve.double(), F.elu(x.double()), rtol=2e-7, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_a_slice_of_channels_last_and_half_precision(path):
    torch.manual_seed(0)
    x = laid_out(torch.randn(3, 20, 50), True)[..., 3:40].bfloat16()
    alpha, inverse = torch.rand(20) + 0.1, torch.rand(20)
    with forced(path):
        y, curve = activations.snake(x, alpha, inverse), activations.elu(x)
    exact = x.double() + inverse.double()[:, None] * (alpha.double()[:, None] * x.double()).sin().square()
    assert y.dtype == curve.dtype == torch.bfloat16
    assert torch.allclose(y.double(), exact, rtol=1 / 256, atol=1e-6)
    assert torch.allclose(curve.double(), F.elu(x.double()), rtol=1 / 256, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_number_stays_so(path):
    bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, -1e30])
    with forced(path):
        curve = activations.elu(bad)
        wave = activations.snake(bad.view(1, 1, -1), torch.ones(1), torch.ones(1)).flatten()
        half = activations.elu(bad.bfloat16())
    assert curve.isnan().tolist() == half.isnan().tolist() == [True, False, False, False, False]
    assert curve[1:].tolist() == [float("inf"), -1.0, 1.0, -1.0]
    assert wave.isnan().tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("module", [Snake(7), SnakeBeta(7)], ids=["Snake", "SnakeBeta"])
def test_gradients_are_those_of_the_formula(path, module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, 0.2, 1.5)
    x = torch.randn(3, 7, 501, requires_grad=True)
    weight = torch.randn(3, 7, 501)
    parameters = list(module.parameters())
    with forced(path):
        found = torch.autograd.grad((module(x) * weight).sum(), [x, *parameters])
    double = module.double()
    exact = torch.autograd.grad((double(x.double()) * weight).sum(), [x, *parameters])
    module.float()
    for a, b in zip(found, exact, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_snake_writes_where_it_is_told(path, dtype):
    torch.manual_seed(0)
    alpha, inverse = torch.rand(20) + 0.1, torch.rand(20)
    for x in (torch.randn(2, 20, 30), laid_out(torch.randn(2, 20, 30), True), torch.randn(2, 20, 60)[..., ::2]):
        x = x.to(dtype)
        with forced(path):
            y = activations.snake(x, alpha, inverse)
            for out in (torch.empty_like(x), torch.empty(2, 20, 30, dtype=dtype), laid_out(torch.empty_like(x), True)):
                assert activations.snake(x, alpha, inverse, out) is out and torch.equal(out, y)
            assert activations.snake(x, alpha, inverse, x) is x and torch.equal(x, y)


def test_in_place_only_without_gradients():
    module, x = Snake(3), torch.randn(2, 3, 20)
    before = x.clone()
    module(x, inplace=True)
    assert torch.equal(x, before)
    with torch.no_grad():
        y = module(x)
        assert module(x, inplace=True).data_ptr() == x.data_ptr() and torch.equal(x, y) and not torch.equal(x, before)


def test_second_derivatives_exist():
    torch.manual_seed(0)
    module, x = Snake(3), torch.randn(2, 3, 20, requires_grad=True)
    (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.square().sum(), x)
    double = x.detach().double().requires_grad_()
    (other,) = torch.autograd.grad(module.double()(double).sum(), double, create_graph=True)
    (exact,) = torch.autograd.grad(other.square().sum(), double)
    assert torch.allclose(bend.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("call", [
    lambda: activations.snake(torch.zeros(2, 3, 4), torch.ones(4), torch.ones(4)),
    lambda: activations.snake(torch.zeros(2, 3, 4).double(), torch.ones(3), torch.ones(3)),
    lambda: activations.snake(torch.zeros(2, 3, 4), torch.ones(3), torch.ones(3), torch.zeros(2, 3, 5)),
    lambda: activations.elu(torch.zeros(3).half()),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(ValueError, match="must be"):
        call()
