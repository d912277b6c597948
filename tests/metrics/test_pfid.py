"""pFID: what moves and how often, independence of batches, monotone in the grid, tables of composed quantizers."""

import re
import runpy
import sys

import pytest
import torch
from torch import nn

from mmtok.metrics.pfid import GRID, Perturbation, PerturbedFrechet, code_tables, neighbours, perturbed
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.projected import Normalized
from mmtok.quantizers.scales import ScaleResidual
from mmtok.quantizers.split import Product
from mmtok.quantizers.vq import VQ
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch


class Means:
    """Mean colours of the four quarters: a network that needs no weights."""

    name, dim, logits = "fd_means", 12, False

    def __call__(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) / 255, None


class Enlarge(nn.Module):
    def forward(self, z, keep):
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.fixture(scope="module")
def tokenizer():
    """Colours of 2x2 squares, nearest of 64."""
    torch.manual_seed(0)
    quantizer = VQ(3, 64)
    quantizer.codebook.data.uniform_(-1, 1)
    return Tokenizer(nn.AvgPool2d(2), quantizer, Enlarge(), (2, 2), (8, 8)).eval()


def pictures(count):
    small = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return (small**2).repeat_interleave(2, 2).repeat_interleave(2, 3) * 2 - 1


def test_a_code_is_its_own_first_neighbour_and_the_nearest_follow():
    table = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    table[7] = table[3]  # equal codes
    near = neighbours(table, 6)
    assert torch.equal(near[:, 0], torch.arange(20))
    assert all(len(set(row.tolist())) == 6 for row in near)
    distances = torch.cdist(table, table).gather(1, near)
    assert bool((distances[:, 1:-1] <= distances[:, 2:] + 1e-6).all())
    assert neighbours(table, 50).shape == (20, 20)


def test_rates_and_neighbourhoods(tokenizer):
    tokens = tokenizer.encode(pictures(64))
    near = [[neighbours(table, 8) for table in tables] for tables in code_tables(tokenizer.quantizer)]
    keys = tuple(f"image{i}" for i in range(64))
    for cell in (Perturbation(0.5, 8), Perturbation(1.0, 4), Perturbation(0.0, 8), Perturbation(1.0, 1)):
        moved = perturbed(tokens, near, cell, keys)
        share = float((moved.codes != tokens.codes).float().mean())
        assert share == pytest.approx(cell.rate * (1 - 1 / cell.neighbours), abs=0.05)
        allowed = near[0][0][tokens.codes[:, 0]][..., : cell.neighbours]
        assert bool((allowed == moved.codes[:, 0][..., None]).any(-1).all())
    whole = perturbed(tokens, near, Perturbation(1.0, 8), keys).codes
    assert torch.equal(perturbed(tokens[5], near, Perturbation(1.0, 8), keys[5:6]).codes, whole[5:6])
    assert not torch.equal(perturbed(tokens, near, Perturbation(1.0, 8), keys, seed=1).codes, whole)


def test_the_distance_grows_with_the_perturbation_whatever_the_batches(tokenizer):
    x, grid = pictures(60), (Perturbation(0.25, 8), Perturbation(1.0, 64))
    values = []
    for size in (60, 7):
        run = PerturbedFrechet(tokenizer, Means(), grid)
        for start in range(0, 60, size):
            part = x[start : start + size]
            run.update(Batch.of(part, tuple(f"image{i}" for i in range(start, start + len(part)))))
        values.append(run.compute())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    found = values[0]
    keys = ["fd_means_60", "pfd_means_r25_n8_60", "pfd_means_r100_n64_60", "pfd_means_mean2_60"]
    assert list(found) == keys and all(re.fullmatch("[a-z0-9_]+", key) for key in keys)
    assert found[keys[0]] < found[keys[2]] and found[keys[1]] < found[keys[2]]
    assert found[keys[3]] == pytest.approx((found[keys[1]] + found[keys[2]]) / 2)
    assert len(GRID) == 9


def test_tables_follow_the_codebooks_of_composed_quantizers(tokenizer):
    a, b = VQ(2, 8), VQ(3, 16, l2_norm=True)
    tables = code_tables(Product([ScaleResidual(a, [1, 2]), ScaleResidual(b, [1, 2])]))
    assert [[tuple(table.shape) for table in grid] for grid in tables] == [[(8, 2), (16, 3)]] * 2
    torch.testing.assert_close(tables[0][1].norm(dim=1), torch.ones(16))
    assert code_tables(Normalized(a))[0][0].shape == (8, 2)
    with pytest.raises(ValueError, match="FSQ has no table"):
        code_tables(FSQ([3, 3]))
    with pytest.raises(ValueError, match="pfid.grid"):
        PerturbedFrechet(tokenizer, Means(), ())


def test_the_script_names_a_mistake(monkeypatch, capsys):
    from pathlib import Path

    script = Path(__file__).parents[2] / "eval" / "pfid.py"
    monkeypatch.setattr(sys, "argv", ["pfid.py", "--model", "no-such-model", "--data", "samples:image"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 2 and "no-such-model" in capsys.readouterr().err
