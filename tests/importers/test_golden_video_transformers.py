"""Imported video transformers reproduce the reference implementations.

The folders under tests/golden/video are small; MMTOK_GOLDEN names a folder whose video/ holds larger ones.
"""

import functools
import importlib
import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmtok import importers

ROOTS = [Path(__file__).parents[1] / "golden"] + [Path(p) for p in [os.environ.get("MMTOK_GOLDEN")] if p]


def folders(*systems):
    return [f for root in ROOTS for f in sorted((root / "video").glob("*/")) if f.name in systems]


def label(folder):
    return f"{folder.parents[1].name}-{folder.name}"


@functools.cache
def load(folder, family):
    """(published config, tokenizer, io, Converted)."""
    published = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "weights.safetensors")
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    module = importlib.import_module(f"mmtok.importers.{family}")
    converted = module.convert(state, module.facts(published, state))
    return published, importers.instantiate(converted), load_file(folder / "io.safetensors"), converted


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-4)


def flat(z):
    """[B, D, *S] -> [B, positions, D]."""
    return z.flatten(2).transpose(1, 2)


def raw(tokenizer, tokens, low=-1.0, high=1.0):
    """Decoded from codes alone in the published range [low, high], not clamped."""
    x = tokenizer._from_model(tokenizer.reconstruct(tokenizer.embed(tokens), tokens), tokens)
    return (x + 1) / 2 * (high - low) + low


@pytest.mark.parametrize("folder", folders("larp"), ids=label)
@torch.no_grad()
def test_larp(folder):
    _, tokenizer, io, converted = load(folder, "larp")
    x = io["x"] * 2 - 1
    batch = len(x)
    z = tokenizer.latents(x)
    close(flat(z), io["projected_z"])
    out = tokenizer.quantizer(z)
    assert torch.equal(out.grids[0].view(batch, -1), io["indices"])
    close(out.losses["commit"].view(1), io["loss_commit"])
    close(out.losses["codebook"].view(1), io["loss_codebook"])
    tokens = tokenizer.encode(x)
    assert torch.equal(tokens.codes.view(batch, -1), io["indices"])
    close(flat(tokenizer.embed(tokens)), io["z_q"])
    close(raw(tokenizer, tokens, 0, 1), io["recon"])
    frames = io["short_recon"].shape[2]
    short = tokenizer.encode(x[:, :, :frames])
    assert torch.equal(short.codes.view(batch, -1), io["short_indices"])
    close(raw(tokenizer, short, 0, 1), io["short_recon"])
    missing = set(tokenizer.state_dict()) - set(converted.source)
    assert missing == {"quantizer.usage"}


@pytest.mark.parametrize("folder", folders("larp"), ids=label)
@torch.no_grad()
def test_prior_of_larp(folder):
    _, tokenizer, io, _ = load(folder, "larp")
    prior, table = tokenizer.prior, tokenizer.quantizer.table()
    z, codes = io["z_q"], io["indices"]
    guesses = prior(z[:, :-1])
    close(torch.cat([z[:, :1], guesses], 1), io["prior_pred"])
    close(prior.logits(z, table)[:1], io["prior_logits"])
    prior.rounds = 1
    total, count = prior.loss(z, codes, table, 0.0)
    close((total / count).view(1), io["prior_ce_round1"])
    second = F.cross_entropy(prior.logits(io["prior_round2_input"], table).flatten(0, 1), codes[:, 1:].flatten())
    close(((total / count + second) / 2).view(1), io["prior_ce_two_rounds"])
    prior.rounds = 2


def keep_of(io, name, codes):
    return (io[name].bool().view(codes.shape),)


@pytest.mark.parametrize("folder", folders("adaptok"), ids=label)
@torch.no_grad()
def test_adaptok(folder):
    facts, tokenizer, io, converted = load(folder, "adaptok")
    x = io["x"] * 2 - 1
    batch = len(x)
    features = tokenizer.encoder.features(tokenizer._to_model(x))
    close(features.flatten(1, 4), io["encoder_out"])
    z = tokenizer.latents(x)
    close(flat(z), io["projected_z"])
    tokens = tokenizer.encode(x)
    assert torch.equal(tokens.codes.view(batch, -1), io["indices"])
    close(flat(tokenizer.embed(tokens)), io["z_q"])
    close(tokenizer.quantizer(z).losses["commit"].view(1), io["loss_commit"])
    close(raw(tokenizer, tokens, 0, 1), io["recon"])
    for name in "ab":
        cut = tokenizer.encode(x, num_tokens=torch.tensor(facts[f"keep_{name}"]))
        keep = keep_of(io, f"mask_{name}", tokens.codes)
        assert torch.equal(cut.keep[0].expand_as(cut.codes), keep[0])
        close(raw(tokenizer, cut, 0, 1), io[f"recon_mask_{name}"])
    losses = tokenizer.quantizer(z, keep_of(io, "mask_a", tokens.codes)).losses
    close(losses["commit"].view(1), io["loss_commit_mask_a"])
    close(losses["codebook"].view(1), io["loss_codebook_mask_a"])
    assert set(tokenizer.state_dict()) - set(converted.source) == {"quantizer.usage"}


@pytest.mark.parametrize("folder", folders("adaptok"), ids=label)
@torch.no_grad()
def test_prior_and_scorer_of_adaptok(folder):
    _, tokenizer, io, _ = load(folder, "adaptok")
    prior, table, codes = tokenizer.prior, tokenizer.quantizer.table(), io["indices"]
    logits = prior.logits(io["z_q"], table)
    close(F.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten()).view(1), io["prior_ce"])
    keep = io["mask_a"].bool()
    places = (~keep).to(torch.int8).argsort(dim=1, stable=True)
    packed = io["z_q"].gather(1, places[..., None].expand_as(io["z_q"]))
    places = torch.where(io["packed_mask_a"].bool(), places, io["packed_positions_a"])
    assert torch.equal(places, io["packed_positions_a"])
    logits = prior.logits(packed * io["packed_mask_a"][..., None], table, places[:, :-1])
    wanted = io["prior_logits_mask_a"]
    sent = io["packed_mask_a"][:1, :-1].bool()
    close(logits[:1, :, : wanted.shape[2]][sent], wanted[sent])
    z = tokenizer.embed(tokenizer.encode(io["x"] * 2 - 1))
    features = tokenizer.encoder.features(tokenizer._to_model(io["x"] * 2 - 1))
    close(-tokenizer._score(features, z, None).flatten(1), io["scores"])
    mask = keep.view(z.shape[0], 1, *z.shape[2:])
    read = mask[:, 0, :, tokenizer.scorer.step - 1 :: tokenizer.scorer.step].flatten(1)
    # the reference lets dropped latents see only themselves, so that their own scores say nothing
    close(-tokenizer._score(features, z * mask, mask).flatten(1)[read], io["scores_mask_a"][read])


@pytest.mark.parametrize("folder", folders("elastictok_fsq"), ids=label)
@torch.no_grad()
def test_elastictok(folder):
    facts, tokenizer, io, converted = load(folder, "elastictok")
    x, batch = io["x"], len(io["x"])
    full = tokenizer.encode(x)
    close(flat(tokenizer.latents(x)), io["pre_quant_full"])
    assert torch.equal(full.codes.view(batch, -1), io["indices_full"])
    close(flat(tokenizer.embed(full)), io["z_q_full"])
    close(raw(tokenizer, full), io["recon_full"])
    counts = torch.tensor(facts["keep_counts"]) + 1  # the reference keeps slots up to n
    tail = tokenizer.encode(x, num_tokens=counts)
    sent = io["keep_tail"].bool()
    assert torch.equal(tail.keep[0].expand_as(tail.codes).view(batch, -1), sent)
    assert torch.equal(tail.codes.view(batch, -1)[sent], io["indices_tail"][sent])
    close(flat(tokenizer.embed(tail)), io["z_q_tail"])
    close(raw(tokenizer, tail), io["recon_tail"])
    for name in ("sweep", "edge"):
        z = io[f"fsq_{name}_in"]
        z = z[:, None].expand(-1, 6) if z.dim() == 1 else z
        out = tokenizer.quantizer(z.T[None])
        assert torch.equal(out.grids[0].view(-1), io[f"fsq_{name}_indices"])
        close(out.z[0].T, io[f"fsq_{name}_codes"])
    assert set(tokenizer.state_dict()) == set(converted.source)


@pytest.mark.parametrize("folder", folders("omnitokenizer_vq"), ids=label)
@torch.no_grad()
def test_omnitokenizer(folder):
    _, tokenizer, io, converted = load(folder, "vivit")
    for kind in ("", "image_"):
        x = io[f"{kind}x"] * 2
        tokens = tokenizer.encode(x)
        video = x if x.dim() == 5 else x[:, :, None]
        close(tokenizer.encoder(video), io[f"{kind}encoder_out"], 2e-5)
        assert torch.equal(tokens.codes[:, 0], io[f"{kind}indices"])
        recon = raw(tokenizer, tokens, -0.5, 0.5)
        close(recon if x.dim() == 5 else recon[:, :, 0], io[f"{kind}recon"], 2e-5)
    close(tokenizer.latents(io["x"] * 2), io["pre_quant"], 2e-5)
    close(tokenizer.embed(tokenizer.encode(io["x"] * 2)), io["z_q"], 2e-5)
    assert set(tokenizer.state_dict()) == set(converted.source)
    with pytest.raises(ValueError, match="cannot stream"):
        tokenizer.stream_state()


@pytest.mark.parametrize("folder", folders("phenaki_cvivit_lfq", "phenaki_cvivit_vq"), ids=label)
@torch.no_grad()
def test_cvivit(folder):
    _, tokenizer, io, converted = load(folder, "vivit")
    for kind in ("", "image_"):
        x = io["x"] * 2 - 1 if not kind else io["x"][:, :, 0] * 2 - 1
        video = (x if x.dim() == 5 else x[:, :, None]) / 2 + 0.5
        close(tokenizer.encoder(video).movedim(1, -1), io[f"{kind}encoder_out"], 2e-5)
        tokens = tokenizer.encode(x)
        assert torch.equal(tokens.codes[:, 0], io[f"{kind}indices"])
        recon = raw(tokenizer, tokens, 0, 1)
        close(recon if x.dim() == 5 else recon[:, :, 0], io[f"{kind}recon"], 2e-5)
    close(tokenizer.embed(tokenizer.encode(io["x"] * 2 - 1)).movedim(1, -1), io["z_q"], 2e-5)
    if "pre_quant" in io:
        close(tokenizer.quantizer.inward(tokenizer.latents(io["x"] * 2 - 1)).movedim(1, -1), io["pre_quant"], 2e-5)
    assert set(tokenizer.state_dict()) - set(converted.source) <= {"quantizer.usage"}


@pytest.mark.parametrize("folder", folders("open_magvit2_video"), ids=label)
@torch.no_grad()
def test_open_magvit2_video(folder):
    facts, tokenizer, io, converted = load(folder, "open_magvit2_video")
    for kind in ("", "image_"):
        x = io["x"] if not kind else io["x"][:, :, :1]
        tokens = tokenizer.encode(x)
        close(tokenizer.latents(x), io[f"{kind}encoder_out"], 5e-5)
        assert torch.equal(tokens.codes[:, 0], io[f"{kind}indices"])
        close(raw(tokenizer, tokens), io[f"{kind}recon"], 5e-5)
    losses = tokenizer.quantizer(io["encoder_out"]).losses
    close(losses["commit"].view(1), io["commitment"])
    torch.testing.assert_close(losses["sample_entropy"].view(1), io["sample_entropy"], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(-losses["diversity"].view(1), io["codebook_entropy"], atol=1e-6, rtol=1e-3)
    assert set(tokenizer.state_dict()) == set(converted.source)
    assert not tokenizer.causal
    with pytest.raises(ValueError, match="cannot stream"):
        tokenizer.stream_state()


@pytest.mark.parametrize("folder", folders("open_magvit2_video")[:1], ids=label)
def test_averages_of_open_magvit2_video(folder):
    facts, _, _, converted = load(folder, "open_magvit2_video")
    module = importlib.import_module("mmtok.importers.open_magvit2_video")
    state = load_file(folder / "weights.safetensors")
    state = {key: value.float() for key, value in state.items()}
    both = {key: value + 1 for key, value in state.items()}
    both |= {average: state[name] for average, name in facts["ema"]["names"].items() if name in state}
    again = module.convert(both, module.facts(facts, both))
    assert all(torch.equal(again.state[key], value) for key, value in converted.state.items())
