"""One rank of the two-process codebook test, in a module that spawned processes can import."""

from __future__ import annotations

import torch
import torch.distributed as dist

from mmtok.quantizers.vq import VQ


def train(rank: int, world: int, store: str, out: str, same_data: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    quantizer = VQ(4, 32, ema_decay=0.8)
    generator = torch.Generator().manual_seed(0 if same_data else rank)
    torch.manual_seed(100 + rank)  # ranks draw different random numbers, as in a real run
    for _ in range(50):
        quantizer(torch.randn(2, 4, 20, generator=generator) + (0 if same_data else 3 * rank))
    torch.save(quantizer.state_dict(), f"{out}/{int(same_data)}_{rank}.pt")
    dist.destroy_process_group()
