"""What TokenFlow is known for, while it trains: one index, chosen by both distances, for meaning and for pixels."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from mmtok.losses.feature_cosine import FeatureCosine
from mmtok.models.image.tokenflow import SemanticDecoder, SemanticEncoder, TokenFlow
from mmtok.nn.conv2d import ConvDecoder2d, ConvEncoder2d
from mmtok.nn.vit_trunk import ViTTrunk
from mmtok.quantizers.scales import ScaleResidual
from mmtok.quantizers.shared_index import SharedIndexVQ
from mmtok.types import Batch

NET = {"z_channels": 8, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "groups": 4}
MEANING, PIXELS, WIDTH = 4, 3, 6


def model(weights=None):
    torch.manual_seed(0)
    book = SharedIndexVQ([MEANING, PIXELS], 32, weights)
    return TokenFlow(
        ConvEncoder2d(**NET), SemanticEncoder(ViTTrunk(16, 1, 2, 4, 2), MEANING), ScaleResidual(book, [1, 2, 4]),
        ConvDecoder2d(**NET), SemanticDecoder(ViTTrunk(16, 1, 2, 4, None), MEANING, WIDTH), (8, 8),
    ).train()  # fmt: skip


def batch(count=8):
    """Small pictures, and a teacher's features of their patches."""
    torch.manual_seed(1)
    x = F.interpolate(torch.rand(count, 3, 2, 2) * 2 - 1, 8, mode="bilinear")
    patches = F.interpolate(torch.randn(count, WIDTH, 2, 2), 4).flatten(2).transpose(1, 2)
    return replace(Batch.of(x), features={"teacher": patches})


def reached(tokenizer, loss):
    """Parts whose parameters the loss has a gradient for."""
    tokenizer.zero_grad()
    loss.backward(retain_graph=True)
    named = tokenizer.named_parameters()
    return {name.split(".")[0] for name, p in named if p.grad is not None and bool(p.grad.any())}


def test_one_code_is_chosen_by_both_distances_and_picks_both_vectors():
    torch.manual_seed(2)
    for weights in ([1.0, 1.0], [1.0, 0.2], [0.3, 2.0]):
        book = SharedIndexVQ([MEANING, PIXELS], 64, weights).eval()
        z = torch.randn(2, MEANING + PIXELS, 5, 5)
        parts = [F.normalize(part, dim=1).flatten(2).transpose(1, 2).flatten(0, 1) for part in z.split([4, 3], 1)]
        tables = [F.normalize(table, dim=1) for table in book.codebook.detach().split([4, 3], 1)]
        distances = [torch.cdist(part, table).square() for part, table in zip(parts, tables, strict=True)]
        joint = sum(weight * distance for weight, distance in zip(weights, distances, strict=True))
        out = book(z)
        codes = out.grids[0].flatten()
        assert torch.equal(codes, joint.argmin(1))
        values = out.z.detach().flatten(2).transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(values, torch.cat([table[codes] for table in tables], 1))
        # neither half alone would have chosen all of these
        assert all(not torch.equal(codes, distance.argmin(1)) for distance in distances)


def test_the_weight_of_a_distance_changes_what_is_chosen():
    """Without the pixels' distance the pixels change nothing; with it they change the meaning's vector too."""
    x = batch().x
    other = x.flip(0)
    for weight, same in ((0.0, True), (1.0, False)):
        tokenizer = model([1.0, weight]).eval()
        with torch.no_grad():
            z, swapped = tokenizer.latents(x), tokenizer.latents(x)
            swapped[:, MEANING:] = tokenizer.latents(other)[:, MEANING:]
            a, b = tokenizer.quantizer(z), tokenizer.quantizer(swapped)
        assert all(torch.equal(p, q) for p, q in zip(a.grids, b.grids, strict=True)) is same
        assert torch.equal(a.z[:, :MEANING], b.z[:, :MEANING]) is same


def test_every_loss_trains_the_parts_it_is_about():
    tokenizer, data = model(), batch()
    out = tokenizer(data)
    assert reached(tokenizer, FeatureCosine()(out, data, 0)) == {"semantic", "meaning_decoder"}
    pixels = (out.x - data.x).square().mean()
    assert reached(tokenizer, pixels) == {"encoder", "quant_conv", "post_quant_conv", "decoder"}
    assert reached(tokenizer, out.losses["commit"]) == {"semantic", "encoder", "quant_conv"}
    assert reached(tokenizer, out.losses["codebook"]) == {"quantizer"}
    # a chosen code learns with both halves, any other with none
    gradient = tokenizer.quantizer.quantizer.codebook.grad
    used = torch.cat([grid.flatten() for grid in out.tokens.grids]).unique()
    assert bool(gradient[used, :MEANING].any(1).all()) and bool(gradient[used, MEANING:].any(1).all())
    assert set(gradient.any(1).nonzero()[:, 0].tolist()) == set(used.tolist())


def test_meaning_and_pixels_are_learned_through_the_same_codes():
    tokenizer, data, term = model(), batch(), FeatureCosine()
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    errors, meanings = [], []
    for step in range(80):
        out = tokenizer(data)
        pixels, meaning = (out.x - data.x).square().mean(), term(out, data, step)
        loss = pixels + meaning + 0.25 * out.losses["commit"] + out.losses["codebook"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(pixels.detach()))
        meanings.append(float(meaning.detach()))
    tokenizer.eval()
    tokens = tokenizer.encode(data)
    decoded = tokenizer.decode(tokens)
    right, wrong = (float((image - data.x).square().mean()) for image in (decoded, decoded.flip(0)))
    assert sum(errors[-5:]) < 0.5 * sum(errors[:5]) and sum(meanings[-5:]) < 0.5 * sum(meanings[:5])
    assert right < 0.5 * wrong  # the image is in the codes
    assert len(torch.cat([grid.flatten() for grid in tokens.grids]).unique()) > 8
