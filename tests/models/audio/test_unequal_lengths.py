"""Every audio recipe, as its tiny variant, trains on clips of different length: what is padded is neither sent nor
learned from."""

import pathlib

import pytest
import torch
from omegaconf import OmegaConf

from mmtok.hub import build
from mmtok.training.config_file import read_config_file
from mmtok.types import Batch

FOLDER = pathlib.Path(__file__).parents[3] / "configs"
RECIPES = [*sorted((FOLDER / "audio").glob("*.yaml")), FOLDER / "demo" / "audio.yaml"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_padded_batch_trains(path):
    source = read_config_file(path, tiny=True)
    source = OmegaConf.create({name: source[name] for name in ("model", "trainer", "data")})
    torch.manual_seed(0)
    tokenizer = build(OmegaConf.to_container(source, resolve=True)["model"]["tokenizer"]).train()
    tokenizer.tail = None  # so that only the padding is not kept
    samples = tokenizer.hop * 24
    lengths = torch.tensor([samples, tokenizer.hop * 9 + 1])
    x = 0.1 * torch.randn(2, tokenizer.channels, samples)
    x[1, :, lengths[1] :] = 0
    rate = torch.full((2,), float(tokenizer.sample_rate), dtype=torch.float64)
    out = tokenizer(Batch(x, ("a", "b"), lengths[:, None], rate, lengths))
    alone = [tokenizer.grid_shapes((n,)) for n in lengths.tolist()]
    for grid, mask, whole, short in zip(out.tokens.grids, out.tokens.keep, *alone, strict=True):
        sent = mask.expand_as(grid)
        assert bool(sent[0].all()) and tuple(grid.shape[1:]) == whole
        kept = int(sent[1].any(0).sum())
        assert 0 < kept <= short[1] and (kept == short[1] or tokenizer.frame_multiple > 1)  # fills coarse codes
        assert not grid[1][~sent[1]].any()
    assert all(bool(value.isfinite()) for value in out.losses.values())
    assert out.x is None or out.x.shape == x.shape and bool(out.x.isfinite().all())
