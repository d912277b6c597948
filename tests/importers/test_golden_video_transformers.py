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
from mmtok.types import Batch

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
