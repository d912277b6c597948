"""Two processes with the shipped strategy: generator and discriminator stay equal on both."""

import socket

import torch
from training_toys import ddp_rank, same


def test_two_processes_keep_identical_parameters(tmp_path, shards, processes):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [processes.start(ddp_rank, rank, port, str(tmp_path), str(shards)) for rank in range(2)]
    for rank in ranks:
        rank.join(120)
    try:
        assert [rank.exitcode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert a["world"] == 2 and a["unused"] and a["step"] == b["step"] == 8
    assert same(a["state"], b["state"]) == [] and same(a["ema"], b["ema"]) == []
    moved = [key for key in a["state"] if "adv.network" in key]
    assert moved and (tmp_path / "ddp/checkpoints/last.ckpt").is_file()
