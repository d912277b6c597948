"""One balanced step of one process; importable by a fresh interpreter."""

import os

import torch

from mmtok.training import Balancer
from mmtok.types import Reconstruction, Tokens


def recon_of(x, heads=None):
    """A reconstruction of x with one meaningless code an item."""
    keep = torch.ones(len(x), 1, 1, dtype=torch.bool)
    tokens = Tokens((keep.long() * 0,), (keep,), ((2,),), torch.full((len(x), 1), x.shape[-1]))
    return Reconstruction(x, tokens, heads=heads or {})


def balance(rank, world, port, folder):
    """Two steps on this rank's share of a batch of 4; saves the averages and the last gradient."""
    if world > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(0)
    balancer = Balancer(["a", "b"], decay=0.9)
    for _ in range(2):
        batch = torch.randn(4, 1, 6, generator=generator)
        share = batch.view(world, -1, 1, 6)[rank].clone().requires_grad_()
        # sums over samples, so that an item's gradient does not depend on how many share its process
        terms = balancer(share, {"a": share.abs().sum(), "b": 5 * share.square().sum()}, {"a": 1.0, "b": 2.0})
        sum(terms.values()).backward()
    torch.save({"sums": balancer.sums, "grad": share.grad}, f"{folder}/{rank}_of_{world}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()
