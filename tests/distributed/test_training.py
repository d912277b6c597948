"""Two processes with the shipped strategy: generator and discriminator stay equal on both."""

import socket

import pytest
import torch
from fault_toys import average_on, free_port
from training_toys import ddp_rank, same


@pytest.mark.parametrize("adversarial", [True, False])
def test_two_processes_keep_identical_parameters(tmp_path, shards, processes, adversarial):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [processes.start(ddp_rank, rank, port, str(tmp_path), str(shards), adversarial) for rank in range(2)]
    for rank in ranks:
        rank.join(120)
    try:
        assert [rank.exitcode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert a["world"] == 2 and a["unused"] and a["step"] == b["step"] == 8
    # running statistics of the discriminator's BatchNorm belong to each rank; DDP hands out rank 0's
    states = [{k: v for k, v in rank["state"].items() if "running_" not in k} for rank in (a, b)]
    assert same(*states) == [] and same(a["ema"], b["ema"]) == []
    # two batches an update, one exchange: 8 of the generator; the discriminator starts at step 3
    assert a["exchanged"] == 8 * a["generator"] + 5 * a["discriminator"]
    assert any("adv.network" in key for key in a["state"]) == adversarial
    assert (tmp_path / "ddp/checkpoints/last.ckpt").is_file()


def test_gradients_are_averaged_also_where_only_one_process_has_some(tmp_path, processes):
    port = free_port()
    ranks = [processes.start(average_on, rank, port, str(tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    for rank in range(2):
        first, second, third, fourth, fifth = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert first.tolist() == [4.0] * 3 and second.tolist() == [14.0] * 5
        assert third.tolist() == [13.0] * 2 and fourth is None  # (0 + 26) / 2
        assert fifth.tolist() == [44.0] * 2 and fifth.dtype == torch.float64
