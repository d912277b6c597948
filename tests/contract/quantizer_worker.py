"""One rank of the two-process quantizer test, in a module that spawned processes can import."""

from __future__ import annotations

import torch
import torch.distributed as dist

from mmtok.quantizers.base import Quantizer
from mmtok.quantizers.entropy_constrained import EntropyConstrainedVQ
from mmtok.quantizers.projected import Projected
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.scales import ScaleResidual
from mmtok.quantizers.shared_index import SharedIndexVQ
from mmtok.quantizers.split import Product
from mmtok.quantizers.vq import VQ

STEPS = 50
MAKERS = {
    "ema": lambda: VQ(4, 32, ema_decay=0.8),
    "gradient": lambda: VQ(4, 32),
    "entropy_constrained": lambda: EntropyConstrainedVQ(4, 32, rate_weight=0.01, ema_decay=0.8, usage_decay=0.9),
    "cvq": lambda: VQ(4, 32, cvq=True),
    "kmeans": lambda: VQ(4, 32, ema_decay=0.8, kmeans_steps=5),
    "shared_index": lambda: SharedIndexVQ([2, 2], 32),
    "residual": lambda: Residual([VQ(4, 16, ema_decay=0.8, kmeans_steps=3), VQ(4, 16, ema_decay=0.8)]),
    "projected": lambda: Projected(VQ(3, 16, cosine=True), 4),
    "product": lambda: Product([VQ(2, 16, ema_decay=0.8), VQ(2, 16)]),
    "scales": lambda: ScaleResidual(VQ(4, 16, ema_decay=0.8), [1, 4, 20], mode="nearest"),
}


def data(rank: int, step: int) -> torch.Tensor:
    """Vectors of rank r sit around 3 r; the ranks hold different numbers of them."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(2 + rank, 4, 20, generator=generator) + 3 * rank


def step_gradients(
    quantizer: Quantizer, losses: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer | None
) -> None:
    """One optimizer step on gradients averaged as DistributedDataParallel does."""
    if optimizer is None:
        return
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    for parameter in quantizer.parameters():
        if parameter.grad is not None and dist.is_initialized():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    optimizer.step()


def train(quantizer: Quantizer, rank: int, steps: int) -> None:
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.SGD(parameters, 0.5) if parameters else None
    for step in range(steps):
        out = quantizer(data(rank, step))
        step_gradients(quantizer, out.losses, optimizer)


def work(rank: int, world: int, store: str, out: str) -> None:
    """Trains every quantizer on two ranks and saves what each rank ends with."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # built before the process group exists, as the command line builds models
    quantizers = {name: make() for name, make in MAKERS.items()}
    fresh = {name: make() for name, make in MAKERS.items()}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(100 + rank)  # ranks draw different random numbers, as in a real run
    states = {}
    for name, quantizer in quantizers.items():
        train(quantizer, rank, STEPS)
        states[name] = quantizer.state_dict()
    for name, quantizer in fresh.items():
        bad = data(rank, 0)
        bad[0, 0, 0] = torch.nan if rank == 1 else 0.0
        quantizer(bad)
        states[f"{name}/after_nan_on_rank_1"] = {key: value.clone() for key, value in quantizer.state_dict().items()}
        quantizer(data(rank, 0))
        states[f"{name}/first_step"] = quantizer.state_dict()
    torch.save(states, f"{out}/{rank}.pt")
    dist.destroy_process_group()
