"""Imported weights reproduce the reference implementations: codes, latents, logits, images, losses, gradients.

The folders under tests/golden/image are small; MMTOK_GOLDEN names a folder whose image/ holds larger ones.
"""

import re

import pytest
import torch
from golden_sets import FAMILY, ROOTS, check_keys, close, folders, label, load_golden, published_range, system

from mmtok.types import Batch

PLAIN = (
    "llamagen_vq", "maskgit_vqgan", "one_d_piece", "taming_vqgan", "titok_single_stage", "titok_two_stage",
)  # fmt: skip


# built from parts that golden folders hold: tests/importers/test_base_inside.py, test_golden_fqgan.py
OF_PARTS = {"mage_vqgan", "fqgan_triple"}


def test_every_importer_has_a_golden_folder():
    assert set(FAMILY) - {folder.name for folder in ROOTS[0].glob("*/*/")} == OF_PARTS


# read by the tests of losses, discriminators, metrics and models
OTHERS = {
    "autoencoder_kl", "dac_discriminator", "encodec_discriminator", "vocos_discriminator", "spectral_losses", "utmos22",
    "vocos_mel",
}  # fmt: skip


def test_no_golden_folder_is_overlooked():
    """A new folder is a new test, or this one fails: nothing lies there unread."""
    found = {system(folder) for root in ROOTS for folder in root.glob("*/*/")}
    assert found - set(FAMILY) == OTHERS


def test_the_measured_page_is_complete():
    """docs/golden.md, which golden_table.py writes, has a line for every system, and no code in it differs."""
    page = (ROOTS[0].parents[1] / "docs" / "golden.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.MULTILINE))
    assert set(rows) >= {name for name in FAMILY if list(ROOTS[0].glob(f"*/{name}/"))}
    counts = [re.fullmatch(r"(\d+) of (\d+)", codes) for codes in rows.values() if codes != "-"]
    assert len(counts) > 40 and all(found and found[1] == found[2] for found in counts)


@pytest.fixture(params=folders(*PLAIN), ids=label)
def golden(request):
    return load_golden(request.param)


@torch.no_grad()
def test_codes_latents_and_losses(golden):
    facts, tokenizer, io, _ = golden
    batch = len(io["x"])
    z = tokenizer.latents(io["x"])
    close(z.flatten(2), io["z"].flatten(2))
    quantized = tokenizer.quantizer(z)
    assert torch.equal(quantized.grids[0].view(batch, -1), io["indices"].view(batch, -1))
    close(quantized.z.flatten(2), io["z_q"].flatten(2))
    assert torch.equal(tokenizer.encode(io["x"]).codes.view(batch, -1), io["indices"].view(batch, -1))
    commit, codebook = quantized.losses["commit"], quantized.losses["codebook"]
    stored = {  # name in io -> ours, the weights of the published sums put in
        "loss_commitment": 0.25 * commit, "commitment_loss": 0.25 * commit, "loss_codebook": codebook,
        "codebook_loss": codebook, "quantizer_loss": 0.25 * commit + codebook, "loss_legacy": commit + 0.25 * codebook,
        "loss_not_legacy": 0.25 * commit + codebook, "loss_vq": codebook, "loss_commit": 0.25 * commit,
    }
    checked = [name for name in stored if name in io]
    for name in checked:
        close(stored[name].view(1), io[name], atol=1e-9, rtol=1e-4)
    assert checked or facts["system"] == "one_d_piece"


@torch.no_grad()
def test_images_and_logits_from_codes_alone(golden):
    facts, tokenizer, io, _ = golden
    lengths = facts.get("lengths")
    for length in lengths or [None]:
        suffix = "" if length is None else f"_len{length}"
        tokens = tokenizer.encode(io["x"], num_tokens=length)
        z = tokenizer.embed(tokens)
        raw = published_range(facts, tokenizer._from_model(tokenizer.reconstruct(z, tokens), tokens))
        close(raw, io[f"recon{suffix}"], atol=1e-4)
        close(tokenizer.decode(tokens), tokenizer._from_model(tokenizer.reconstruct(z, tokens), tokens).clamp(-1, 1))
        if f"proxy_logits{suffix}" in io:
            logits = tokenizer.decoder(z, tokens.keep)
            close(logits, io[f"proxy_logits{suffix}"])
            if "soft_code" in io:
                close(tokenizer.pixels.soft_code(logits), io["soft_code"])


def test_gradients_of_the_legacy_loss(golden):
    """taming put beta on the codebook term: a matter of weights, so the gradients must follow."""
    facts, tokenizer, io, _ = golden
    if "grad_codebook" not in io:
        assert facts["system"] != "taming_vqgan"
        return
    x = io["x"][:1]
    tokenizer.train()
    tokenizer.quantizer.revival = 0.0
    out = tokenizer(Batch.of(x))
    loss = out.losses["commit"] + facts["beta"] * out.losses["codebook"] + (out.x - x).abs().mean()
    loss.backward()
    close(tokenizer.quantizer.codebook.grad, io["grad_codebook"], atol=1e-8, rtol=1e-3)
    close(tokenizer.quant_conv.weight.grad, io["grad_quant_conv_weight"], atol=1e-6, rtol=1e-3)
    close(tokenizer.encoder.conv_in.weight.grad, io["grad_encoder_conv_in_weight"], atol=1e-6, rtol=1e-3)


def test_every_published_key_is_accounted_for(golden):
    _, tokenizer, _, converted = golden
    check_keys(tokenizer, converted)
