"""Random tokens of a prefix model with two codebooks and code tables."""

import pytest
import torch

from mmtok.code_tables import CodeTables
from mmtok.keep import Prefix, prefix_mask
from mmtok.types import Tokens


def random_tokens(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    keep = prefix_mask(torch.randint(1, 9, (n,), generator=g), 8)[:, None]
    codes = torch.randint(0, 20, (n, 2, 8), generator=g).masked_fill(~keep, 0)
    tables = (torch.randint(1, 90, (2, 20), generator=g, dtype=torch.int32),)
    tables[0][:, 0] += (1 << 24) - tables[0].sum(1, dtype=torch.int32)  # the range coder's total
    size = torch.tensor([[32, 48]]).repeat(n, 1)
    return Tokens((codes,), (keep,), ((20, 20),), size, coding=Prefix(-1), tables=CodeTables(tables))


@pytest.fixture
def tokens():
    return random_tokens
