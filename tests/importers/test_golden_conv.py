"""IBQ, Open-MAGVIT2 and VAR against the reference: codes, losses, images from codes alone."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_sets import check_keys, close, folders, label, load_golden, raw_image

from mmtok.keep import GridPrefix
from mmtok.quantizers.lookup_free import LFQ


@pytest.fixture(params=folders("ibq"), ids=label)
def ibq(request):
    return load_golden(request.param)


@pytest.fixture(params=folders("open_magvit2_lfq"), ids=label)
def magvit(request):
    return load_golden(request.param)


@pytest.fixture(params=folders("var_vqvae"), ids=label)
def var(request):
    return load_golden(request.param)


@torch.no_grad()
def test_ibq(ibq):
    facts, tokenizer, io, converted = ibq
    check_keys(tokenizer, converted, own=set())
    z = tokenizer.latents(io["x"])
    close(z, io["z"])
    out = tokenizer.quantizer(z)
    close(out.z, io["z_q"])
    losses = out.losses
    close((losses["index"] + losses["commit"] + 0.25 * losses["codebook"]).view(1), io["loss_quant"], atol=1e-7)
    close(losses["sample_entropy"].view(1), io["loss_sample_entropy"], atol=1e-6)
    close(-losses["diversity"].view(1), io["loss_avg_entropy"], atol=1e-6)
    tokens = tokenizer.encode(io["x"])
    assert torch.equal(tokens.codes[:, 0], io["indices"])
    close(raw_image(facts, tokenizer, tokens), io["recon"], atol=1e-4)


def test_ibq_gradient_reaches_every_code(ibq):
    _, tokenizer, io, _ = ibq
    quantizer = tokenizer.quantizer.train()
    out = quantizer(io["z"][:1])
    losses = out.losses
    (losses["index"] + losses["commit"] + 0.25 * losses["codebook"] + out.z.square().mean()).backward()
    expected = io["grad_codebook"]
    close(quantizer.codebook.grad, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
    assert bool((quantizer.codebook.grad.abs().amax(1) > 0).all())


@torch.no_grad()
def test_open_magvit2(magvit):
    facts, tokenizer, io, converted = magvit
    check_keys(tokenizer, converted, own=set())
    z = tokenizer.latents(io["x"])
    close(z, io["z"])
    out = tokenizer.quantizer(z)
    assert torch.equal(out.z, io["z_q"])
    close(out.losses["sample_entropy"].view(1), io["loss_per_sample_entropy"], atol=1e-5)
    close(-out.losses["diversity"].view(1), io["loss_codebook_entropy"], atol=1e-5)
    close(out.losses["commit"].view(1), io["loss_commit_unweighted"], atol=1e-7)
    tokens = tokenizer.encode(io["x"])
    assert torch.equal(tokens.codes[:, 0], io["indices"])
    close(raw_image(facts, tokenizer, tokens), io["recon"], atol=1e-4)
    split = LFQ(facts["bits"], groups=facts["factorized_bits"], entropy_temperature=None)(z)
    assert torch.equal(split.grids[0], torch.stack([io["indices_pre"], io["indices_post"]], 1))


@torch.no_grad()
def test_var(var):
    facts, tokenizer, io, converted = var
    check_keys(tokenizer, converted, own={"quantizer.quantizer.usage"})
    z = tokenizer.latents(io["x"])
    close(z, io["f"])
    out = tokenizer.quantizer(z)
    tokens = tokenizer.encode(io["x"])
    for i, (grid, loose) in enumerate(zip(tokens.grids, out.grids, strict=True)):
        assert torch.equal(grid, loose) and torch.equal(grid.flatten(1), io[f"indices_{i}"])
    close((out.losses["codebook"] + facts["beta"] * out.losses["commit"]).view(1), io["loss_vq"], atol=1e-7)
    sums = tokenizer.quantizer.partial_sums(tokens.grids)
    close(torch.stack(sums), io["f_hat"])
    close(raw_image(facts, tokenizer, tokens), io["recon_raw"], atol=1e-4)
    close(tokenizer.decode(tokens), io["recon"], atol=1e-4)
    # what a next-scale model is fed with while it learns
    inputs = [F.interpolate(s, (n, n), mode="area") for s, n in zip(sums, facts["patch_nums"][1:], strict=False)]
    close(torch.cat([x.flatten(2) for x in inputs], 2).transpose(1, 2), io["var_input"])


@torch.no_grad()
def test_var_decodes_a_prefix_of_its_scales(var):
    _, tokenizer, io, _ = var
    tokens = tokenizer.encode(io["x"])
    keep = GridPrefix().masks(torch.ones(len(tokens), 1, dtype=torch.int64), tokens.shapes)
    grids = tuple(grid * mask for grid, mask in zip(tokens.grids, keep, strict=True))
    close(tokenizer.decode(replace(tokens, grids=grids, keep=keep, coding=GridPrefix())), io["recon_first2"], atol=1e-4)
