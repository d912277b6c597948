"""KARL against the reference, image by image and in a batch: codes, halting, logits over base codes."""

from dataclasses import replace

import pytest
import torch
from golden_sets import check_keys, close, folders, label, load_golden

from mmtok.types import Batch


@pytest.fixture(params=folders("karl"), ids=label)
def golden(request):
    return load_golden(request.param)


def batch_of(io, rows=slice(None)):
    """The images with the base features that the set holds."""
    data = Batch.of(io["x"][rows])
    data.features["base"] = io["base_features"][rows]
    return data


@torch.no_grad()
def test_batched_equals_the_reference_alone(golden):
    facts, tokenizer, io, converted = golden
    check_keys(tokenizer, converted)
    data = batch_of(io)
    wish = torch.tensor(facts["desired_quality"])
    assert torch.equal(tokenizer.encoder.bin(io["quality_probe"][0]), io["quality_probe_bin"][0])
    for budget in facts["budgets"]:
        z, halting = tokenizer.encoder((data.x + 1) / 2, data.features["base"], wish, budget)
        close(z.transpose(1, 2), io[f"z_budget{budget}"], atol=3e-5)
        close(halting, io[f"halt_logits_budget{budget}"], atol=3e-5)
        out = tokenizer.quantizer(z)
        close(out.z.transpose(1, 2), io[f"z_q_budget{budget}"], atol=3e-5)
        assert torch.equal(out.grids[0][:, 0], io[f"indices_budget{budget}"])
        halted = torch.sigmoid(halting) > facts["halting_threshold"]
        assert torch.equal(halted, io[f"halted_budget{budget}"])
        places = facts["grid"][0] * facts["grid"][1]
        blocked = io[f"decoder_mask_budget{budget}"][:, 0, places:]
        assert torch.equal(halted, blocked)  # what the queries of the image may not see
        logits = tokenizer.decoder(out.z, tuple(facts["grid"]), ~halted)
        close(logits.flatten(2).transpose(1, 2), io[f"decoder_logits_budget{budget}"], atol=3e-5)
        close(tokenizer.decoder.soft_code(logits), io[f"soft_code_budget{budget}"], atol=1e-4)


@torch.no_grad()
def test_codes_alone_carry_what_is_sent(golden):
    facts, tokenizer, io, _ = golden
    for row, quality in enumerate(facts["desired_quality"]):
        for budget in facts["budgets"]:
            tokens = tokenizer.encode(batch_of(io, slice(row, row + 1)), num_tokens=budget, target=quality)
            kept = ~io[f"halted_budget{budget}"][row]
            assert torch.equal(tokens.keep[0][0, 0, :budget], kept) and not bool(tokens.keep[0][0, 0, budget:].any())
            assert torch.equal(tokens.codes[0, 0, :budget], io[f"indices_budget{budget}"][row] * kept)
            sent = int(kept.sum())
            bits = sent * torch.tensor(float(facts["codebook_size"])).log2() + tokenizer.num_latents
            assert float(tokens.bits) == pytest.approx(float(bits))
            logits = tokenizer.predict(tokenizer.embed(tokens), tokens)
            close(tokenizer.decoder.soft_code(logits), io[f"soft_code_budget{budget}"][row : row + 1], atol=1e-4)


@torch.no_grad()
def test_the_mask_of_one_image_is_not_that_of_another(golden):
    facts, tokenizer, io, _ = golden
    tokens = tokenizer.encode(batch_of(io))
    first = tokenizer.predict(tokenizer.embed(tokens), tokens)[0]
    keep = tokens.keep[0].clone()
    keep[1] = keep[1].roll(3, -1) | (torch.arange(keep.shape[-1]) == 0)
    other = replace(tokens, keep=(keep,))
    close(tokenizer.predict(tokenizer.embed(other), other)[0], first)
    with pytest.raises(ValueError, match="tokenizer.base is missing"):
        tokenizer.decode(tokens)
