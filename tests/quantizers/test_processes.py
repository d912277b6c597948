"""Two processes keep one codebook: the same on both, moved by the data of both, untouched by NaN on one."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp
from quantizer_worker import MAKERS, data, train, work

from mmtok.quantizers.kmeans import kmeans_of_batch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (2, str(folder / "store"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def alone(name: str) -> dict[str, torch.Tensor]:
    """Rank 0's data only."""
    torch.manual_seed(0)
    quantizer = MAKERS[name]()
    train(quantizer, 0, 50)
    return quantizer.state_dict()


@pytest.mark.parametrize("name", MAKERS)
def test_codebooks_are_equal_after_fifty_steps(ranks, name) -> None:
    for part in ("", "/first_step"):
        a, b = (states[name + part] for states in ranks)
        for key, value in a.items():
            assert torch.equal(value, b[key]), key


@pytest.mark.parametrize("name", ["ema", "gradient", "cvq", "kmeans"])
def test_both_ranks_move_the_codebook(ranks, name) -> None:
    # rank 1's data sits around 3: codes near it show that its vectors arrived
    assert (ranks[0][name]["codebook"].mean(1) > 2).any()
    assert (ranks[0][name]["codebook"].mean(1) < 1).any()
    assert (alone(name)["codebook"].mean(1) > 2).sum() == 0


def test_k_means_starts_at_both_ranks(ranks) -> None:
    state = ranks[0]["kmeans/first_step"]
    assert bool(state["initialized"])
    assert (state["codebook"].mean(1) > 2).sum() >= 8 and (state["codebook"].mean(1) < 1).sum() >= 8


@pytest.mark.parametrize("name", MAKERS)
def test_nan_on_one_rank_leaves_every_rank_finite(ranks, name) -> None:
    a, b = (states[f"{name}/after_nan_on_rank_1"] for states in ranks)
    for key, value in a.items():
        assert torch.isfinite(value).all() and torch.equal(value, b[key]), key
    if name == "kmeans":
        assert not bool(a["initialized"])  # waits for a good batch


def test_centroids_of_one_process_are_means_of_their_vectors() -> None:
    torch.manual_seed(0)
    centres = torch.randn(8, 4) * 10
    vectors = (centres[:, None] + 0.01 * torch.randn(8, 50, 4)).flatten(0, 1)
    found = kmeans_of_batch(vectors, 8, 100)
    assert found is not None
    nearest = torch.cdist(vectors.double(), found.double()).argmin(1)
    for code in nearest.unique():
        torch.testing.assert_close(found[code], vectors[nearest == code].mean(0))
    assert kmeans_of_batch(vectors[:0], 8, 3) is None
    assert kmeans_of_batch(data(0, 0)[0].T[:3], 8, 3).shape == (8, 4)
