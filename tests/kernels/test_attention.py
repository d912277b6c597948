"""Attention of all over all: softmax in float64, every path, sizes and strides; what it does not serve is torch's."""

import pytest
import torch
import torch.nn.functional as F
from exact import PATHS
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.kernels import forced, native
from mmtok.kernels.attention import attention

NATIVE = native.paths()
needs_library = pytest.mark.skipif(not NATIVE, reason="the C++ kernels are not built")


def exact(q, k, v, scale):
    return torch.softmax(scale * q.double() @ k.double().transpose(-1, -2), -1) @ v.double()


@needs_library
@settings(max_examples=120, deadline=None)
@given(
    path=st.sampled_from(NATIVE or ("torch",)), batch=st.integers(1, 2), heads=st.integers(1, 4),
    queries=st.integers(1, 150), keys=st.integers(1, 600), dim=st.integers(1, 90), half=st.booleans(),
    loud=st.sampled_from([0.1, 1.0, 30.0]), threads=st.integers(1, 3), seed=st.integers(0, 1 << 20),
)
def test_equals_softmax_in_double_precision(path, batch, heads, queries, keys, dim, half, loud, threads, seed):
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if half else torch.float32
    # heads beside each other in a row, as a fused projection gives them
    q = (torch.randn(batch, queries, heads, dim) * loud).to(dtype).transpose(1, 2)
    k, v = torch.randn(batch, keys, 2, heads, dim).to(dtype).permute(2, 0, 3, 1, 4)
    with forced(path):
        native.select(path)
        y = native.attention(q, k, v, dim**-0.5)
    wanted = exact(q, k, v, dim**-0.5)
    assert y.shape == wanted.shape and y.dtype == dtype and y.transpose(1, 2).is_contiguous()
    # rounding of a score of size s changes its weight by that share; bfloat16 keeps 8 bits of weights and values
    tolerance = 2e-2 if half else 2e-6 * (1 + loud * 4)
    assert torch.allclose(y.double(), wanted, rtol=0, atol=tolerance)


@needs_library
@pytest.mark.parametrize("path", NATIVE)
def test_many_heads_take_turns_and_threads_change_nothing(path):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 40, 257, 64).unbind(0)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        native.select(path)
        found.append(native.attention(q, k, v, 0.125))
    assert torch.equal(*found)
    assert torch.allclose(found[0].double(), exact(q, k, v, 0.125), atol=5e-6)


@needs_library
def test_scores_of_any_size_stay_finite():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 200, 32).unbind(0)
    native.select(NATIVE[0])
    y = native.attention(q * 1e4, k, v, 1.0)
    assert torch.allclose(y.double(), exact(q * 1e4, k, v, 1.0), atol=1e-3)
    same = native.attention(torch.zeros_like(q), k, v, 1.0)
    assert torch.allclose(same, v.mean(2, keepdim=True).expand_as(v), atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_the_operator_on_every_path(path):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 200, 48).unbind(0)
    with forced(path):
        assert torch.allclose(attention(q, k, v).double(), exact(q, k, v, 48**-0.5), atol=5e-6)
        assert torch.allclose(attention(q, k, v, 0.3).double(), exact(q, k, v, 0.3), atol=5e-6)


@needs_library
@pytest.mark.parametrize("path", [path for path in NATIVE if path != "portable"])
def test_paths_that_are_faster_than_torch_serve(path, monkeypatch):
    used = []
    monkeypatch.setattr(native, "attention", lambda q, k, v, scale: used.append(scale) or q)
    q, k, v = torch.randn(3, 1, 2, 200, 16).unbind(0)
    with forced(path):
        attention(q, k, v)
    assert used == [0.25]


def test_gradients_types_and_few_scores_are_left_to_torch(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(native, "attention", None)  # not called below
    q, k, v = torch.randn(3, 1, 2, 200, 8).unbind(0)
    learning = q.clone().requires_grad_()
    attention(learning, k, v).sum().backward()
    assert learning.grad is not None
    few = q[:, :, :3]
    assert torch.equal(attention(few, k, v), F.scaled_dot_product_attention(few, k, v))
    assert attention(q.double(), k.double(), v.double()).dtype == torch.float64
    assert attention(q[0], k[0], v[0]).shape == (2, 200, 8)
