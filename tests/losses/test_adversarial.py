"""GAN terms: formulas, the timetable, LeCAM and the adaptive weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmtok.losses import L2, Adversarial, Hinge, HingeNonSaturating, NonSaturating, Vanilla
from mmtok.training import Objective
from mmtok.types import Batch, Reconstruction, Tokens


def _recon(x):
    keep = torch.ones(len(x), 1, 1, dtype=torch.bool)
    return Reconstruction(x, Tokens((keep.long() * 0,), (keep,), ((2,),), torch.ones(len(x), 2, dtype=torch.int64)))


class Mean(nn.Module):
    """Logit = gain x mean of the image."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.gain * x.mean((1, 2, 3))


def test_losses_equal_their_formulas():
    real, fake = torch.tensor([0.3, 2.0]), torch.tensor([-1.5, 0.4])
    ones, zeros = torch.ones(2), torch.zeros(2)
    assert Hinge().discriminator(real, fake).item() == pytest.approx(0.5 * (0.7 / 2 + 1.4 / 2))
    assert Hinge().generator(fake).item() == pytest.approx(0.55)
    bce = F.binary_cross_entropy_with_logits
    expected = 0.5 * (bce(real, ones) + bce(fake, zeros))
    for loss in (Vanilla(), NonSaturating()):
        torch.testing.assert_close(loss.discriminator(real, fake), expected)
    torch.testing.assert_close(NonSaturating().generator(fake), bce(fake, ones))
    torch.testing.assert_close(HingeNonSaturating().generator(fake), bce(fake, ones))
    assert HingeNonSaturating().discriminator(fake, fake) == Hinge().discriminator(fake, fake)


def test_timetable_of_start_lead_and_ramp():
    term = Adversarial(Mean(), start=10, lead=5, ramp=4)
    batch, recon = Batch.of(torch.ones(2, 3, 4, 4)), _recon(torch.full((2, 3, 4, 4), -0.5))
    assert term.discriminator(recon, batch, 9) == {} and term.discriminator(recon, batch, 10)
    assert [term.strength(step) for step in (14, 15, 16, 17, 18, 99)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert term(recon, batch, 14) == {}
    value = term(recon, batch, 15)[""]
    assert value.item() == pytest.approx(1.0)
    assert term.scale(value, torch.zeros(()), 15).item() == pytest.approx(0.25)


def test_lecam_pulls_towards_averages_of_the_other_side():
    term = Adversarial(Mean(), lecam=True, lecam_decay=0.5)
    batch, recon = Batch.of(torch.full((2, 3, 4, 4), 0.5)), _recon(torch.full((2, 3, 4, 4), -0.25))
    first = term.discriminator(recon, batch, 0)["lecam"]
    assert first.item() == pytest.approx(1.0**2 + 0.5**2)  # averages start at 0; logits are 1 and -.5
    torch.testing.assert_close(term.ema, torch.tensor([0.5, -0.25]))
    second = term.discriminator(recon, batch, 1)["lecam"]
    assert second.item() == pytest.approx((1 + 0.25) ** 2 + (0.5 + 0.5) ** 2)
    bad = _recon(torch.full((2, 3, 4, 4), float("nan")))
    before = term.ema.clone()
    term.discriminator(bad, batch, 2)
    assert torch.equal(term.ema, before)


def test_adaptive_weight_makes_both_gradients_equal_at_the_anchor():
    torch.manual_seed(0)
    tokenizer = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    adv = Adversarial(Mean(), adaptive="1.weight")

    objective = Objective({"l2": L2(), "adv": adv}, {"l2": 3.0, "adv": 0.8, "adv_disc": 1.0})
    objective.bind(tokenizer)
    x = torch.rand(2, 3, 8, 8)
    terms = objective.generator(_recon(tokenizer(x)), Batch.of(x), 0)
    norms = [
        torch.autograd.grad(terms[name], tokenizer[1].weight, retain_graph=True)[0].norm() for name in ("l2", "adv")
    ]
    torch.testing.assert_close(norms[1], 0.8 * norms[0], rtol=1e-2, atol=0)
    assert "adv_adaptive" in objective.stats()
    with pytest.raises(ValueError, match="no parameter 'nowhere'"):
        Adversarial(Mean(), adaptive="nowhere").bind(tokenizer)
