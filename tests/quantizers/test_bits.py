"""Bits: order fixed by literal codes, groups, very wide codes, and entropies against the full codebook."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantize_pytorch import LFQ as LibraryLFQ

from mmtok.quantizers.bernoulli import BernoulliBits
from mmtok.quantizers.entropy import product_entropies
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.ibq import IBQ
from mmtok.quantizers.lookup_free import BSQ, LFQ
from mmtok.quantizers.vq import VQ

SIGNS = torch.tensor([[1.0, -1, -1, -1], [-1, -1, -1, 1], [1, 1, -1, 0], [0, 0, 0, 0]]).T[None]


@pytest.mark.parametrize(
    ("quantizer", "codes"),
    [
        (LFQ(4), [[1, 8, 3, 0]]),
        (LFQ(4, little_endian=False), [[8, 1, 12, 0]]),
        (LFQ(4, [1, 3]), [[1, 0, 1, 0], [0, 4, 1, 0]]),
        (BSQ(4), [[8, 1, 12, 0]]),
        (BSQ(4, little_endian=True), [[1, 8, 3, 0]]),
        (BSQ(4, [2, 2]), [[2, 0, 3, 0], [0, 1, 0, 0]]),
    ],
)
def test_bit_order_of_signs(quantizer, codes) -> None:
    out = quantizer.eval()(SIGNS)
    assert out.grids[0][0].tolist() == codes
    expected = torch.where(SIGNS > 0, 1.0, -1.0) * (0.5 if isinstance(quantizer, BSQ) else 1.0)
    assert torch.equal(quantizer.decode((torch.tensor([codes]),)), expected)


def test_bit_order_of_bernoulli_bits_is_big_endian() -> None:
    quantizer = BernoulliBits(4, 4).eval()
    quantizer.project.weight.data.copy_(torch.eye(4))
    quantizer.project.bias.data.zero_()
    quantizer.embedding.data.copy_(torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0])))
    out = quantizer(SIGNS)
    assert out.grids[0][0, 0].tolist() == [8, 1, 12, 0]
    assert out.z[0].T.tolist() == [[1, 0, 0, 0], [0, 0, 0, 8], [1, 2, 0, 0], [0, 0, 0, 0]]


def test_bernoulli_bits_are_drawn_with_their_probability_in_training() -> None:
    torch.manual_seed(0)
    quantizer = BernoulliBits(3, 3)
    quantizer.project.weight.data.copy_(torch.eye(3))
    quantizer.project.bias.data.zero_()
    p = torch.tensor([0.1, 0.5, 0.8])
    codes = quantizer.train()(p.logit().view(1, 3, 1).expand(1, 3, 20000)).grids[0]
    share = ((codes.flatten()[:, None] >> torch.tensor([2, 1, 0])) & 1).float().mean(0)
    torch.testing.assert_close(share, p, atol=0.015, rtol=0)


def test_lookup_free_codes_equal_the_public_library() -> None:
    theirs = LibraryLFQ(codebook_size=64, dim=6).eval()
    z = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0))
    value, codes, _ = theirs(z.transpose(1, 2))
    out = LFQ(6, little_endian=False).eval()(z)
    assert torch.equal(out.grids[0][:, 0], codes.long())
    torch.testing.assert_close(out.z.transpose(1, 2), value)


@pytest.mark.parametrize("make", [lambda: LFQ(62), lambda: BSQ(36), lambda: LFQ(90, [45, 45])])
def test_codes_too_many_to_count_one_by_one(make) -> None:
    quantizer = make().eval()
    z = torch.randn(2, quantizer.dim, 8)
    out = quantizer(z)
    assert torch.equal(quantizer.decode(out.grids), out.z)
    assert all(torch.isfinite(value) for value in (*out.losses.values(), *out.stats.values()))


def soft_codes(z: torch.Tensor, codebook: torch.Tensor, temperature: float) -> torch.Tensor:
    return (2 * z.double() @ codebook.double().T / temperature).softmax(1)


def brute_entropies(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    p = p.double()
    mean = p.mean(0)
    return -(p * (p + 1e-300).log()).sum(1).mean(), (mean * (mean + 1e-300).log()).sum()


@pytest.mark.parametrize("temperature", [0.3, 2.0])
@pytest.mark.parametrize("kind", ["lfq", "bsq", "fsq"])
def test_factorised_entropies_are_those_of_the_full_codebook(kind, temperature) -> None:
    torch.manual_seed(0)
    if kind == "fsq":
        quantizer = FSQ([5, 4, 3, 8], entropy_temperature=temperature)
        codebook = quantizer.decode((torch.arange(480).view(1, 1, -1),))[0].T
    else:
        quantizer = {"lfq": LFQ, "bsq": BSQ}[kind](8, entropy_temperature=temperature, entropy_bits=8)
        codebook = quantizer.decode((torch.arange(256).view(1, 1, -1),))[0].T
    z = torch.randn(3, quantizer.dim, 11, requires_grad=True)
    losses = quantizer.train()(z).losses
    vectors = z.movedim(1, -1).flatten(0, 1)
    vectors = torch.nn.functional.normalize(vectors, dim=1) if kind == "bsq" else vectors
    sample, diversity = brute_entropies(soft_codes(vectors, codebook, temperature))
    for ours, theirs in ((losses["sample_entropy"], sample), (losses["diversity"], diversity)):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=1e-5)
        a, b = (torch.autograd.grad(value, z, retain_graph=True)[0] for value in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_groups_bound_the_joint_entropy_from_above() -> None:
    torch.manual_seed(0)
    factors = [torch.rand(20, 2).softmax(1) for _ in range(6)]
    joint = product_entropies(factors, limit=64)["diversity"]
    halves = product_entropies(factors, limit=8)["diversity"]
    single = product_entropies(factors, limit=2)["diversity"]
    assert single < halves < joint <= 0
    assert float(-single) <= 6 * math.log(2) + 1e-5


@pytest.mark.parametrize(
    "logits",
    [lambda q: lambda x: x @ q.codebook.T / 0.1,
     lambda q: lambda x: (2 * x @ q.codebook.T - q.codebook.square().sum(1)) / 0.1],
    ids=["ibq", "vq"],
)  # fmt: skip
def test_chunked_entropies_are_those_of_the_whole_matrix(logits, request, monkeypatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("mmtok.quantizers.entropy.CHUNK_ENTRIES", 32 * 7)  # chunks of seven rows
    quantizer = (IBQ if "ibq" in request.node.name else VQ)(4, 32, entropy_temperature=0.1)
    torch.nn.init.normal_(quantizer.codebook)
    z = torch.randn(2, 4, 15, requires_grad=True)
    losses = quantizer.train()(z).losses
    sample, diversity = brute_entropies(logits(quantizer)(z.movedim(1, -1).flatten(0, 1)).softmax(1))
    for ours, theirs in ((losses["sample_entropy"], sample), (losses["diversity"], diversity)):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)
        for a, b in zip(
            torch.autograd.grad(ours, [z, quantizer.codebook], retain_graph=True),
            torch.autograd.grad(theirs, [z, quantizer.codebook], retain_graph=True), strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor any operator returned."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                Largest.entries = max(Largest.entries, value.numel())
        return out


@pytest.mark.parametrize(
    ("make", "count"), [(lambda: LFQ(18), 512), (lambda: FSQ([8, 8, 8, 8, 8, 8], entropy_temperature=0.01), 512),
                        (lambda: IBQ(2, 1 << 18), 48)], ids=["lfq", "fsq", "ibq"],
)  # fmt: skip
def test_entropies_of_2_to_the_18_codes_never_build_the_full_matrix(make, count) -> None:
    quantizer = make().train()
    z = torch.randn(1, quantizer.dim, count, requires_grad=True)
    Largest.entries = 0
    with Largest():
        sum(quantizer(z).losses.values()).backward()
    assert Largest.entries <= max(1 << 22, count << 10) < count << 18
    assert torch.isfinite(z.grad).all()


def test_index_propagation_is_the_gradient_of_the_dense_formula() -> None:
    torch.manual_seed(0)
    quantizer = IBQ(5, 11, entropy_temperature=None).train()
    torch.nn.init.normal_(quantizer.codebook)
    z = torch.randn(2, 5, 7, requires_grad=True)
    weight = torch.randn(2, 5, 7)
    ours = torch.autograd.grad((quantizer(z).z * weight).sum(), [z, quantizer.codebook])
    logits = z.movedim(1, -1) @ quantizer.codebook.T
    p = logits.softmax(-1)
    hard = torch.nn.functional.one_hot(logits.argmax(-1), 11).float()
    dense = ((hard - p.detach() + p) @ quantizer.codebook).movedim(-1, 1)
    theirs = torch.autograd.grad((dense * weight).sum(), [z, quantizer.codebook])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert (ours[1].abs().sum(1) > 0).all()  # every code


def test_bad_groups_and_temperatures_name_their_key() -> None:
    for groups in ([3, 2], [6, 0], [7]):
        with pytest.raises(ValueError, match="groups"):
            LFQ(6, groups)
    with pytest.raises(ValueError, match="groups"):
        BSQ(63)
    for make in (lambda: LFQ(4, entropy_temperature=0.0), lambda: FSQ([4], entropy_temperature=-1.0),
                 lambda: IBQ(4, 4, entropy_temperature=0.0), lambda: VQ(4, 4, entropy_temperature=0.0)):  # fmt: skip
        with pytest.raises(ValueError, match="entropy_temperature"):
            make()


def test_all_codes_of_every_group_can_be_sent() -> None:
    quantizer = LFQ(5, [2, 3]).eval()
    codes = torch.tensor(list(itertools.product(range(4), range(8)))).T[None]
    assert torch.equal(quantizer(quantizer.decode((codes,))).grids[0], codes)
