"""Codes by distance and price: the rule, the shares behind it, and what it gains at the same rate."""

from __future__ import annotations

import math

import pytest
import torch

from mmtok.export import quantizers as plain
from mmtok.quantizers.entropy_constrained import EntropyConstrainedVQ
from mmtok.quantizers.vq import VQ


def trained(quantizer: VQ, steps: int = 300) -> VQ:
    """Trained on vectors of two kinds: nine in ten nearly still, one in ten busy."""
    torch.manual_seed(0)
    quantizer.train()
    for _ in range(steps):
        quantizer(mixture(1024))
    return quantizer.eval()


def mixture(count: int) -> torch.Tensor:
    scale = torch.where(torch.rand(count, 1) < 0.1, 1.0, 0.05)
    return (torch.randn(count, 2) * scale).T[None]


def rate_and_distortion(quantizer: VQ) -> tuple[float, float]:
    """Entropy in bits a vector of the codes of held-out vectors, and their mean squared error."""
    torch.manual_seed(1)
    z = mixture(20000)
    out = quantizer(z)
    counts = torch.bincount(out.grids[0].flatten(), minlength=quantizer.codebook_sizes[0][0]).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log2()).sum()), float((z - out.z).square().mean())


def test_the_code_minimises_distance_plus_price() -> None:
    torch.manual_seed(0)
    quantizer = EntropyConstrainedVQ(5, 70, rate_weight=0.3).eval()
    quantizer.usage.copy_(torch.rand(70).square())
    z = torch.randn(2, 5, 40)
    vectors = z.movedim(1, -1).reshape(-1, 5).double()
    cost = torch.cdist(vectors, quantizer.codebook.double()).square() + 0.3 * quantizer.bits().double()
    assert torch.equal(quantizer(z).grids[0].flatten(), cost.argmin(1))
    assert not torch.equal(cost.argmin(1), torch.cdist(vectors, quantizer.codebook.double()).argmin(1))


def test_bits_are_the_code_lengths_of_the_running_shares() -> None:
    quantizer = EntropyConstrainedVQ(1, 4, rate_weight=0.0, usage_decay=0.5, revival=1e-9).train()
    quantizer.codebook.copy_(torch.tensor([[0.0], [10.0], [20.0], [30.0]]))
    assert quantizer.bits().tolist() == [2.0] * 4
    quantizer(torch.tensor([[[0.0, 0.0, 10.0, 20.0]]]), (torch.tensor([[[True, True, True, False]]]),))
    share = torch.tensor([0.25 + 2 / 3, 0.25 + 1 / 3, 0.25, 0.25]) / 2 + 0.02 / 4
    torch.testing.assert_close(quantizer.bits(), -(share / share.sum()).log2())


def test_at_the_rate_of_a_plain_codebook_the_error_is_smaller() -> None:
    plain_rate, plain_error = rate_and_distortion(trained(VQ(2, 32, ema_decay=0.9)))
    rate, error = rate_and_distortion(trained(EntropyConstrainedVQ(2, 256, 0.004, ema_decay=0.9, usage_decay=0.99)))
    assert rate < plain_rate
    assert error < 0.6 * plain_error


def test_without_a_weight_it_is_the_plain_search() -> None:
    torch.manual_seed(0)
    ours, theirs = EntropyConstrainedVQ(4, 16, rate_weight=0.0).eval(), VQ(4, 16).eval()
    theirs.codebook.data.copy_(ours.codebook)
    z = torch.randn(3, 4, 50)
    assert torch.equal(ours(z).grids[0], theirs(z).grids[0])


def test_the_shares_are_saved_and_training_goes_on_from_them() -> None:
    quantizer = trained(EntropyConstrainedVQ(2, 16, 0.01), steps=20)
    other = EntropyConstrainedVQ(2, 16, 0.01).eval()
    kept = {k: v for k, v in quantizer.state_dict().items() if k not in quantizer.training_state}
    assert "usage" in kept
    other.load_state_dict(kept, strict=False)
    other.restart_training_state()
    z = mixture(500)
    assert torch.equal(other(z).grids[0], quantizer(z).grids[0])
    assert torch.equal(other.ema_sums, quantizer.codebook)
    assert not math.isclose(float(other.bits().min()), float(other.bits().max()))


def test_the_exported_form_chooses_the_same_codes() -> None:
    quantizer = trained(EntropyConstrainedVQ(2, 64, 0.02), steps=50)
    z = mixture(400)
    assert torch.equal(plain.codes(quantizer, z), quantizer(z).grids[0])


def test_bad_arguments_name_their_key() -> None:
    with pytest.raises(ValueError, match="rate_weight"):
        EntropyConstrainedVQ(2, 16, rate_weight=-1.0)
    with pytest.raises(ValueError, match="revival"):
        EntropyConstrainedVQ(2, 16, rate_weight=0.1, revival=0.0)
