"""ALIT trains: more iterations leave less error; lengths by number or by error, per image; files; mistakes."""

import pytest
import torch

from mmtok import hub
from mmtok.bitstream import pack, unpack
from mmtok.models.image.alit import ALIT, AlitDecoder, AlitEncoder
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
SIZES = {"dim": 4, "base_dim": 8, "grid": 4, "width": 32, "layers": 1, "heads": 2}
PATH = "mmtok.models.image.alit"
MODEL = {
    "class_path": f"{PATH}.ALIT",
    "init_args": {
        "encoder": {"class_path": f"{PATH}.AlitEncoder", "init_args": SIZES | {"patch": 2, "step": 2, "iterations": 3}},
        "quantizer": {"class_path": VQ, "init_args": {"dim": 4, "codebook_size": 32, "l2_norm": True}},
        "decoder": {"class_path": f"{PATH}.AlitDecoder", "init_args": SIZES | {"base_codes": 16, "max_latents": 6}},
        "size": [8, 8], "emphasis": [2.0, 1.5, 1.0],
    },
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    joined = join(hub.build(MODEL), hub.build(BASE))
    joined.base.requires_grad_(False)
    return joined


def train(model, x, steps):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    losses = []
    for _ in range(steps):
        recon = model(Batch.of(x))
        assert set(recon.losses) == {"nll", "code", "commit", "codebook"}
        loss = sum(recon.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(recon.losses["nll"].detach()))
    model.eval()
    return losses


def test_learns_base_codes_at_every_length(model):
    x = torch.rand(12, 3, 8, 8) * 2 - 1
    losses = train(model, x, 150)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert all(p.grad is None for p in model.base.parameters())
    with torch.no_grad():
        codes = model.read_base(Batch.of(x))[1]
        nll = []
        for n in (2, 4, 6):
            tokens = model.encode(x, num_tokens=n)
            nll.append(float(model.code_losses(model.predict(model.embed(tokens), tokens), codes)["nll"]))
    assert nll[0] > nll[1] > nll[2]


def test_stage_two_trains_one_iteration_a_step(model):
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    model.draw = True
    model.base.decoder.requires_grad_(True)
    sent = set()
    model.train()
    for _ in range(12):
        recon = model(Batch.of(x))
        assert recon.x.shape == x.shape
        sent.add(int(recon.tokens.num_sent[0]))
    assert sent == {2, 4, 6}
    recon.x.sum().backward()
    assert bool(model.encoder.latents.grad.any()) and model.base.decoder.conv_out.weight.grad is not None


def test_target_is_met_per_image_with_the_fewest_codes(model):
    x = torch.rand(4, 3, 7, 10) * 2 - 1
    errors = []
    for n in (2, 4, 6):
        image = model.decode(model.encode(x, num_tokens=n))
        assert image.shape == x.shape
        padded = torch.nn.functional.pad(x, (0, 0, 0, 1), mode="replicate")
        again = model.decode(model.encode(padded, num_tokens=n))
        errors.append(((again - padded).abs() / 2).flatten(1).mean(1))
    errors = torch.stack(errors)
    target = float(errors.min(0).values.median()) + 1e-6
    wanted = [next((2 * (i + 1) for i in range(3) if float(column[i]) < target), 6) for column in errors.T]
    tokens = model.encode(x, target=target)
    assert tokens.num_sent.tolist() == wanted
    for i, n in enumerate(wanted):
        one = model.encode(x[i : i + 1], num_tokens=n)
        assert torch.equal(one.codes, tokens[i].codes)
        torch.testing.assert_close(model.decode(one), model.decode(tokens)[i : i + 1], atol=1e-4, rtol=0)
        back = unpack(pack(tokens[i]), model)
        assert torch.equal(back.codes, one.codes) and torch.equal(back.keep[0], one.keep[0])


def test_patches_that_are_known_rest(model):
    """With a decoder that is sure of one code, patches of this code are hidden, and only those."""
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    features, codes = model.read_base(Batch.of(x))
    sure = int(codes.flatten().mode().values)
    model.decoder.head.logits.bias.data[sure] = 20.0
    (_, first), *_ = model.rollout((x + 1) / 2, features, codes, 2, range(2))
    assert torch.equal(first.resting, (codes == sure).flatten(1))
    size = tuple(codes.shape[1:])
    sequence = model.encoder.start((x + 1) / 2, features)
    hidden = model.encoder.rest(sequence, first.resting, size)
    same = (hidden == sequence).all(-1)[:, 1 : 1 + codes[0].numel()]
    assert torch.equal(same, ~first.resting)


def test_mistakes_are_named(model):
    x = torch.zeros(1, 3, 8, 8)
    for n in (3, 0, 8):
        with pytest.raises(ValueError, match="multiples of 2 up to 6"):
            model.encode(x, num_tokens=n)
    with pytest.raises(ValueError, match="use num_tokens"):
        model.encode(x, num_quantizers=1)
    with pytest.raises(ValueError, match="tokenizer.base is missing"):
        hub.build(MODEL).encode(x)
    encoder = AlitEncoder(**SIZES, patch=2, step=2, iterations=3)
    quantizer = hub.build(MODEL).quantizer
    with pytest.raises(ValueError, match="emphasis: one share for each of 3"):
        ALIT(encoder, quantizer, AlitDecoder(**SIZES, base_codes=16, max_latents=6))
    with pytest.raises(ValueError, match="max_latents is 4"):
        ALIT(encoder, quantizer, AlitDecoder(**SIZES, base_codes=16, max_latents=4), emphasis=(1.0, 1.0, 1.0))
