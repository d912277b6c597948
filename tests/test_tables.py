"""Entropy tables make files of familiar data smaller and never lose a code."""

from __future__ import annotations

import torch
import toys

from mmtok import Batch
from mmtok.bitstream import pack, unpack
from mmtok.coder import table_bits
from mmtok.tables import fit_tables


def media(seed: int, batch: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 1, 8, 8, generator=generator).expand(-1, 3, -1, -1) * 2 - 1


def model() -> toys.PrefixOneD:
    torch.manual_seed(0)
    model = toys.PrefixOneD(num_tokens=32).train()
    model.quantizer.codebook[8:] += 3  # far away: half of the codes hardly occur
    return model


def test_files_shrink_to_the_entropy_of_the_codes() -> None:
    tokenizer = model()
    held_out = tokenizer.eval().encode(media(9))
    before = sum(len(pack(held_out[i])) for i in range(64))
    tokenizer.train()
    seen = fit_tables(tokenizer, [Batch.of(media(seed)) for seed in range(4)])
    assert seen == 4 * 64 * 32 and tokenizer.training
    held_out = tokenizer.eval().encode(media(9))
    sizes = [len(pack(held_out[i])) for i in range(64)]
    ideal = float(table_bits(tokenizer.tables.plain[0][0])[held_out.codes].sum()) / 8
    overhead = 64 * (14 + 5 / 8)  # header, and the length of the prefix
    assert sum(sizes) < 0.85 * before
    assert abs(sum(sizes) - ideal - overhead) < 64
    for i in range(4):
        assert torch.equal(unpack(pack(held_out[i]), tokenizer).codes, held_out[i].codes)


def test_codes_that_training_never_saw_can_still_be_sent() -> None:
    tokenizer = model()
    fit_tables(tokenizer, [Batch.of(media(0))])
    tokens = tokenizer.eval().encode(media(1, 1))
    rare = int(tokenizer.tables.plain[0][0].argmin())
    tokens.grids[0].fill_(rare)
    assert torch.equal(unpack(pack(tokens), tokenizer).codes, tokens.codes)
    assert (tokenizer.tables.plain[0] > 0).all()


def test_no_batches_leave_no_tables() -> None:
    tokenizer = model()
    assert fit_tables(tokenizer, []) == 0 and tokenizer.tables is None
