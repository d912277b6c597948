"""What FQGAN is known for, while it trains: codebooks that are pushed apart, and a branch that follows a teacher."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from mmtok.losses import FeatureContrast
from mmtok.models.image.fqgan import BranchEncoder2d, FactorizedTokenizer, FeatureHead
from mmtok.nn.conv2d import ConvDecoder2d
from mmtok.quantizers.split import Product
from mmtok.quantizers.vq import VQ
from mmtok.types import Batch

NET = {"z_channels": 8, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "groups": 4}
WIDTH = 12


def model():
    torch.manual_seed(0)
    encoder = BranchEncoder2d(code_dims=[4, 4], grid=4, layers=1, heads=2, **NET)
    quantizer = Product([VQ(4, 32, l2_norm=True) for _ in range(2)], disentangle=True)
    head = FeatureHead(4, WIDTH, grid=4, layers=1, heads=2)
    return FactorizedTokenizer(encoder, quantizer, ConvDecoder2d(**NET), [head], (8, 8)).train()


def batch(count=8):
    """Small pictures, and a teacher's feature of each."""
    torch.manual_seed(1)
    x = F.interpolate(torch.rand(count, 3, 2, 2) * 2 - 1, 8, mode="bilinear")
    return replace(Batch.of(x), features={"teacher": torch.randn(count, WIDTH)})


def reached(tokenizer, loss):
    """Parts whose parameters the loss has a gradient for."""
    tokenizer.zero_grad()
    loss.backward(retain_graph=True)
    names = [name for name, p in tokenizer.named_parameters() if p.grad is not None and bool(p.grad.any())]
    return {part(name) for name in names}


def part(name):
    """The trunk, one of its branches, or a child of the tokenizer."""
    first, *rest = name.split(".")
    if first != "encoder":
        return first
    return ".".join(rest[:2]) if rest[0] == "branches" else "trunk"


def test_every_loss_trains_the_parts_it_is_about():
    tokenizer, data = model(), batch()
    out = tokenizer(data)
    trunk, visual, semantic = "trunk", "branches.0", "branches.1"
    # the teacher speaks to the semantic branch alone
    assert reached(tokenizer, FeatureContrast()(out, data, 0)) == {trunk, semantic, "features"}
    # codes are pushed apart through the latents they stand for, as in the authors' code
    assert reached(tokenizer, out.losses["disentangle"]) == {trunk, visual, semantic}
    pixels = (out.x - data.x).square().mean()
    assert reached(tokenizer, pixels) == {trunk, visual, semantic, "post_quant_conv", "decoder"}
    assert reached(tokenizer, out.losses["codebook"]) == {"quantizer"}
    reached(tokenizer, out.losses["codebook"])
    assert all(bool(member.codebook.grad.any()) for member in tokenizer.quantizer.members)


def test_nothing_pushes_codebooks_that_are_orthogonal():
    tokenizer = model()
    for index, member in enumerate(tokenizer.quantizer.members):
        with torch.no_grad():
            member.codebook[:, 2 - 2 * index : 4 - 2 * index] = 0  # each spans two of the four directions
    out = tokenizer(batch())
    assert float(out.losses["disentangle"].detach()) < 1e-12
    for member in tokenizer.quantizer.members:
        torch.nn.init.ones_(member.codebook)
    assert abs(float(tokenizer(batch()).losses["disentangle"].detach()) - 1) < 1e-5


def train(weight, steps):
    """(mean squared cosines, shares of features that are nearest to their own image) of every step."""
    tokenizer, data, term = model(), batch(), FeatureContrast(temperature=0.1)
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    angles, right, errors = [], [], []
    for step in range(steps):
        out = tokenizer(data)
        pixels = (out.x - data.x).square().mean()
        loss = pixels + 0.25 * out.losses["commit"] + out.losses["codebook"] + term(out, data, step)
        loss = loss + weight * out.losses["disentangle"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        angles.append(float(out.losses["disentangle"].detach()))
        right.append(float(term.stats["accuracy"]))
        errors.append(float(pixels.detach()))
    return angles, right, errors


def mean(values):
    return sum(values) / len(values)


def test_training_pushes_the_codes_apart_and_follows_the_teacher():
    """With the published weight of 0.1; chance is one image of eight."""
    angles, right, errors = train(0.1, 150)
    free, _, _ = train(0.0, 50)
    assert mean(angles[-10:]) < 0.4 * angles[0] < 0.4 * mean(free[-10:])
    assert mean(right[:10]) < 0.3 and mean(right[-10:]) > 0.6
    assert mean(errors[-10:]) < 0.3 * errors[0]
