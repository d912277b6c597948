"""Binary codes while they train: entropy ends a collapse (BSQ, LFQ), coin flips learn to carry a message (BAE)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmtok.quantizers.bernoulli import BernoulliBits
from mmtok.quantizers.lookup_free import BSQ, LFQ


def collapsed(bits=6):
    """An encoder whose outputs all lie on one side of every plane, and what it sees."""
    torch.manual_seed(0)
    encoder = nn.Linear(8, bits)
    nn.init.constant_(encoder.bias, 3.0)
    return encoder, torch.randn(512, 8)


def train(quantizer, weight, steps=100):
    """(codes used, share of ones of every bit) after training with the entropy terms at this weight."""
    encoder, data = collapsed()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-2)
    quantizer.train()
    for _ in range(steps):
        losses = quantizer(encoder(data).T[None]).losses
        loss = 0.25 * losses["commit"] + weight * (losses["sample_entropy"] + losses["diversity"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codes = quantizer.eval()(encoder(data).T[None]).grids[0].flatten()
    return len(codes.unique()), ((codes[:, None] >> torch.arange(6)) & 1).float().mean(0)


KINDS = {"bsq": lambda: BSQ(6), "joint": lambda: BSQ(6, entropy_bits=6), "lfq": lambda: LFQ(6, entropy_temperature=1.0)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_entropy_terms_end_a_collapse(kind):
    make = KINDS[kind]
    quantizer = make()
    encoder, data = collapsed()
    assert len(quantizer.eval()(encoder(data).T[None]).grids[0].unique()) < 4
    without, _ = train(make(), 0.0)
    used, ones = train(make(), 1.0)
    assert without < 4 and used > 40
    assert float((ones - 0.5).abs().max()) < 0.15  # every bit says something


def test_coin_flips_learn_to_carry_a_message():
    """Sixteen messages in six bits, through the gradient of the probabilities alone: the flips become sure."""
    torch.manual_seed(0)
    quantizer, encoder, decoder = BernoulliBits(8, 6), nn.Linear(16, 8), nn.Linear(8, 16)
    parameters = [*quantizer.parameters(), *encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-2)
    messages = torch.arange(16).repeat(8)
    x = F.one_hot(messages, 16).float()

    def read():
        """(codes, loss, share of messages that are understood)."""
        out = quantizer(encoder(x).T[None])
        logits = decoder(out.z[0].T)
        right = (logits.argmax(1) == messages).float().mean()
        return out.grids[0].flatten(), F.cross_entropy(logits, messages), float(right)

    quantizer.train()
    (first, _, before), (second, _, _) = read(), read()
    assert not torch.equal(first, second) and before < 0.2  # drawn anew, and not understood
    for _ in range(300):
        _, loss, _ = read()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn, _, after = read()
    sure, _, right = (quantizer.eval(), read())[1]
    assert after > 0.8 and right > 0.9
    assert float((drawn == sure).float().mean()) > 0.7
