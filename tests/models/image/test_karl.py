"""KARL trains: surplus latents learn to halt, per image; joining with a base; lengths of the user's choice."""

import pytest
import torch

from mmtok import hub
from mmtok.bitstream import pack, unpack
from mmtok.models.image.karl import KARL, KarlDecoder, KarlEncoder
from mmtok.training.karl_base import join
from mmtok.types import Batch

CONV = {"z_channels": 8, "channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "groups": 4}
VQ = "mmtok.quantizers.vq.VQ"
BASE = {
    "class_path": "mmtok.models.image.conv.ConvTokenizer",
    "init_args": {
        "encoder": {"class_path": "mmtok.nn.conv2d.ConvEncoder2d", "init_args": CONV},
        "quantizer": {"class_path": VQ, "init_args": {"dim": 8, "codebook_size": 16}},
        "decoder": {"class_path": "mmtok.nn.conv2d.ConvDecoder2d", "init_args": CONV},
        "size": [8, 8], "quant_conv": False,
    },
}  # fmt: skip
SIZES = {"dim": 4, "base_dim": 8, "width": 32, "layers": 1, "heads": 2, "max_grid": 8, "max_latents": 16}
PATH = "mmtok.models.image.karl"
MODEL = {
    "class_path": f"{PATH}.KARL",
    "init_args": {
        "encoder": {"class_path": f"{PATH}.KarlEncoder", "init_args": SIZES | {"patch": 2, "halting_hidden": 16}},
        "quantizer": {"class_path": VQ, "init_args": {"dim": 4, "codebook_size": 32, "l2_norm": True}},
        "decoder": {"class_path": f"{PATH}.KarlDecoder", "init_args": SIZES | {"base_codes": 16}},
        "size": [8, 8], "num_latents": 12, "budget": 12, "step": 4, "longest": 16,
    },
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    joined = join(hub.build(MODEL), hub.build(BASE))
    assert torch.equal(joined.decoder.codebook, joined.base.quantizer.codebook)
    joined.base.requires_grad_(False)
    joined.base.config = BASE
    return joined


def test_surplus_latents_learn_to_halt(model):
    x = torch.rand(6, 3, 8, 8) * 2 - 1
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    history = []
    for _ in range(150):
        recon = model(Batch.of(x))
        assert set(recon.losses) == {"nll", "code", "halting", "commit", "codebook"}
        loss = sum(recon.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((float(recon.losses["nll"].detach()), float(recon.losses["halting"].detach())))
    first, last = (torch.tensor(part).mean(0) for part in (history[:15], history[-15:]))
    assert bool((last < first).all())
    assert model.encoder.halting[0].weight.grad is not None and bool(model.encoder.wishes.grad.any())
    assert all(p.grad is None for p in model.base.parameters())


def test_the_second_pass_blocks_what_the_first_did_not_have(model):
    model.train()
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    kept = set()
    for _ in range(40):
        tokens = model(Batch.of(x)).tokens
        assert tokens.codes.shape == (3, 1, 12)
        kept.add(int(tokens.keep[0].expand(3, 1, 12)[0].sum()))
    assert kept == {4, 8, 12}  # budgets of 4, 8, 12 and 16 latents leave 8, 4, 0 and 0 to halt


def test_batched_equals_single_and_travels(model):
    x = torch.rand(3, 3, 7, 10) * 2 - 1
    tokens = model.encode(x, num_tokens=10, target=0.1)
    image = model.decode(tokens)
    assert image.shape == x.shape
    for i in range(3):
        one = model.encode(x[i : i + 1], num_tokens=10, target=0.1)
        assert torch.equal(one.codes, tokens[i].codes) and torch.equal(one.keep[0], tokens[i].keep[0])
        torch.testing.assert_close(model.decode(one), image[i : i + 1], atol=1e-4, rtol=0)
        back = unpack(pack(one), model)
        assert torch.equal(back.codes, one.codes) and torch.equal(back.keep[0], one.keep[0])
    assert not bool(tokens.keep[0][..., 10:].any())


def test_even_an_image_that_halts_everything_sends_a_code(model):
    torch.nn.init.constant_(model.encoder.halting[2].bias, 50.0)
    tokens = model.encode(torch.rand(2, 3, 8, 8) * 2 - 1)
    assert tokens.num_sent.tolist() == [1, 1]
    model.decode(tokens)


def test_mistakes_are_named(model):
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="num_tokens: this model sends 1 to 12"):
        model.encode(x, num_tokens=13)
    with pytest.raises(ValueError, match="use num_tokens"):
        model.encode(x, num_quantizers=2)
    with pytest.raises(ValueError, match="max_latents 16"):
        KARL(KarlEncoder(**SIZES, patch=2), hub.build(MODEL).quantizer, KarlDecoder(**SIZES, base_codes=16))
    with pytest.raises(ValueError, match="tokenizer.base is missing"):
        hub.build(MODEL).encode(x)
    with pytest.raises(ValueError, match="first argument must be"):
        join(hub.build(BASE), hub.build(BASE))
    with pytest.raises(ValueError, match="trained on another base"):
        join(hub.build(MODEL), hub.build(BASE), trained=True)
    assert torch.equal(join(model, model.base, trained=True).encode(x).codes, model.encode(x).codes)
