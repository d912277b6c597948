"""ALIT against the reference: every iteration, with and without patches coming to rest, one image or a batch."""

from dataclasses import replace

import pytest
import torch
from golden_sets import check_keys, close, folders, label, load_golden

from mmtok.types import Batch


@pytest.fixture(params=folders("alit"), ids=label)
def golden(request):
    return load_golden(request.param)


def batch_of(io, rows=slice(None)):
    data = Batch.of(io["x"][rows])
    data.features["base"] = io["base_features"][rows]
    return data


def rows_of(z):
    return z.flatten(2).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "halting_"])
def test_every_iteration(golden, prefix):
    facts, tokenizer, io, converted = golden
    check_keys(tokenizer, converted)
    tokenizer.halting = facts["halting_threshold"] if prefix else None
    data = batch_of(io)
    features, codes = io["base_features"], io["base_ids"].view(-1, *facts["grid"])  # drawn apart from each other
    count = facts["iterations"]
    passes = tokenizer.rollout((data.x + 1) / 2, features, codes, count, range(count), io["halting_uniform"])
    for i, one in passes:
        assert torch.equal(one.quantized.grids[0][:, 0], io[f"{prefix}indices_iter{i}"])
        close(rows_of(one.logits), io[f"{prefix}logits_iter{i}"], atol=3e-5)
        if f"{prefix}z_q_iter{i}" in io:
            close(rows_of(one.quantized.z), io[f"{prefix}z_q_iter{i}"], atol=3e-5)
        if prefix:
            assert torch.equal(one.resting, io[f"halting_dropped_iter{i}"])
    if prefix:
        close(rows_of(tokenizer.decoder.soft_code(one.logits)), io["soft_code_last"], atol=1e-4)


@torch.no_grad()
def test_codes_alone_of_every_length(golden):
    facts, tokenizer, io, _ = golden
    tokenizer.halting = None
    step = facts["num_init_latent_tokens"]
    for i in range(facts["iterations"]):
        tokens = tokenizer.encode(batch_of(io), num_tokens=(i + 1) * step)
        sent = tokens.keep[0].expand_as(tokens.codes)
        assert torch.equal(tokens.codes[sent].view(len(tokens), -1), io[f"indices_iter{i}"])
        assert not bool(tokens.codes[~sent].any()) and tokens.num_sent.tolist() == [(i + 1) * step] * len(tokens)
        bits = (i + 1) * step * torch.tensor(float(facts["codebook_size"])).log2()
        assert float(tokens.bits[0]) == pytest.approx(float(bits + torch.tensor(facts["iterations"]).log2()))
        logits = tokenizer.predict(tokenizer.embed(tokens), tokens)
        close(rows_of(logits), io[f"logits_iter{i}"], atol=3e-5)


@torch.no_grad()
def test_images_of_a_batch_may_differ_in_length(golden):
    facts, tokenizer, io, _ = golden
    tokenizer.halting = None
    short, full = (tokenizer.encode(batch_of(io), num_tokens=n) for n in (facts["num_init_latent_tokens"], None))
    mixed = replace(
        full, grids=(torch.cat([short.codes[:1], full.codes[1:]]),),
        keep=(torch.cat([short.keep[0][:1], full.keep[0][1:]]),),
    )
    logits = rows_of(tokenizer.predict(tokenizer.embed(mixed), mixed))
    close(logits[:1], io["logits_iter0"][:1], atol=3e-5)
    close(logits[1:], io[f"logits_iter{facts['iterations'] - 1}"][1:], atol=3e-5)
