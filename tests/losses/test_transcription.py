"""Spelling transcripts: values, what counts, mistakes."""

import pytest
import torch

from mmtok.losses.transcription import Transcription
from mmtok.types import Batch, Reconstruction


def recon(logits):
    return Reconstruction(None, None, {}, {"text": logits})


def batch(*texts, lengths=None):
    x = torch.zeros(len(texts), 1, 1600)
    return Batch(x, tuple(map(str, range(len(texts)))), torch.full((len(texts), 1), 1600), lengths=lengths, text=texts)


def test_a_sure_head_costs_nothing_and_a_blind_one_the_paths():
    term = Transcription()
    logits = torch.full((1, 4, 257), -30.0)
    for step, letter in enumerate([ord("a") + 1, 0, ord("a") + 1, ord("b") + 1]):
        logits[0, step, letter] = 30.0
    assert float(term(recon(logits), batch("aab"), 0)) < 1e-3
    # two steps, one letter: aa, a-, -a of 257 ** 2 paths
    blind = term(recon(torch.zeros(1, 2, 257)), batch("a"), 0)
    assert float(blind) == pytest.approx(-torch.log(torch.tensor(3 / 257**2)).item(), rel=1e-5)


def test_texts_that_are_missing_or_too_long_count_nothing():
    term = Transcription(hop=400)
    logits = torch.randn(3, 4, 257, generator=torch.Generator().manual_seed(0), requires_grad=True)
    lengths = torch.tensor([1600, 1600, 800])
    value = term(recon(logits), batch("ab", "", "aa", lengths=lengths), 0)
    alone = term(recon(logits[:1]), batch("ab"), 0)
    assert torch.allclose(value, alone)
    assert float(Transcription(hop=400)(recon(logits.detach()), batch("", "", "toolong"), 0)) == 0
    term(recon(logits), batch("ab", "", "aa", lengths=lengths), 0).backward()
    assert float(term.stats["spelled"]) == pytest.approx(1 / 3)
    assert bool(logits.grad[0].any()) and not bool(logits.grad[1:].any())


def test_mistakes_name_the_key():
    with pytest.raises(ValueError, match="data.init_args.text"):
        Transcription()(recon(torch.zeros(1, 4, 257)), Batch.of(torch.zeros(1, 1, 8)), 0)
    with pytest.raises(ValueError, match="letters: 256"):
        Transcription()(recon(torch.zeros(1, 4, 30)), batch("a"), 0)
