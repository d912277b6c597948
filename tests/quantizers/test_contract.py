"""What every quantizer must hold, whatever its kind, shape, type and autocast state."""

from __future__ import annotations

import math

import pytest
import torch

from mmtok.quantizers.base import Quantizer
from mmtok.quantizers.bernoulli import BernoulliBits
from mmtok.quantizers.entropy_constrained import EntropyConstrainedVQ
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.ibq import IBQ
from mmtok.quantizers.kmeans import FrozenKMeans
from mmtok.quantizers.library import LibraryQuantizer
from mmtok.quantizers.lookup_free import BSQ, LFQ
from mmtok.quantizers.multiscale import MultiScale
from mmtok.quantizers.perturbed import PerturbedVQ
from mmtok.quantizers.projected import Normalized, Projected
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.scales import ScaleResidual
from mmtok.quantizers.shared_index import SharedIndexVQ
from mmtok.quantizers.simvq import SimVQ
from mmtok.quantizers.split import Product, SplitResidual
from mmtok.quantizers.stochastic import StochasticVQ
from mmtok.quantizers.uniform import Uniform
from mmtok.quantizers.vq import VQ

# one position's code depends on that position alone
POINTWISE = {
    "vq": lambda: VQ(6, 32),
    "vq_l2": lambda: VQ(6, 32, l2_norm=True),
    "vq_cosine": lambda: VQ(6, 32, cosine=True),
    "vq_ema": lambda: VQ(6, 32, ema_decay=0.9),
    "vq_ema_l2": lambda: VQ(6, 32, l2_norm=True, ema_decay=0.9),
    "vq_kmeans": lambda: VQ(6, 4, ema_decay=0.9, ema_smoothing=1e-5, kmeans_steps=3),
    "vq_cvq": lambda: VQ(6, 32, cvq=True),
    "vq_entropy": lambda: VQ(6, 32, entropy_temperature=0.1),
    "vq_one_code": lambda: VQ(6, 1),
    "vq_entropy_constrained": lambda: EntropyConstrainedVQ(6, 32, rate_weight=0.05),
    "vq_stochastic": lambda: StochasticVQ(6, 32),
    "vq_perturbed": lambda: PerturbedVQ(6, 32, share=1.0, neighbours=4),
    "simvq": lambda: SimVQ(6, 32),
    "ibq": lambda: IBQ(6, 32),
    "shared_index": lambda: SharedIndexVQ([4, 2], 32, [1.0, 0.5]),
    "frozen_kmeans": lambda: FrozenKMeans(6, 32),
    "uniform": lambda: Product([Uniform(9) for _ in range(6)]),
    "fsq": lambda: FSQ([8, 5, 5, 3, 2, 2]),
    "fsq_entropy": lambda: FSQ([8, 5, 5, 3, 2, 2], entropy_temperature=0.1),
    "fsq_tan": lambda: FSQ([8, 8, 5, 5, 3, 3], margin=-1e-3, tan_shift=True),
    "lfq": lambda: LFQ(6),
    "lfq_groups": lambda: LFQ(6, [2, 4]),
    "bsq": lambda: BSQ(6),
    "bernoulli": lambda: BernoulliBits(6, 9, [4, 5], entropy=True),
    "projected": lambda: Projected(VQ(3, 32, cosine=True), 6),
    "normalized": lambda: Normalized(VQ(6, 32)),
    "residual": lambda: Residual([VQ(6, 32), VQ(6, 16), VQ(6, 16)]),
    "residual_ema": lambda: Residual([VQ(6, 16, ema_decay=0.9) for _ in range(3)]),
    "residual_shared": lambda: Residual([VQ(6, 32, ema_decay=0.9)], depth=3),
    "residual_through": lambda: Residual([VQ(6, 32), VQ(6, 16)], through=True),
    "residual_fsq": lambda: Residual([FSQ([5, 5, 3, 3, 3, 3]) for _ in range(2)]),
    "dac": lambda: Residual([Projected(VQ(3, 32, cosine=True), 6) for _ in range(3)], through=True),
    "mimi": lambda: SplitResidual(
        Projected(VQ(4, 16), 6, False, False), Projected(Residual([VQ(4, 16), VQ(4, 16)]), 6, False, False)
    ),
    "product": lambda: Product([VQ(3, 16), VQ(3, 32)], disentangle=True),
    "grouped": lambda: Product([Residual([VQ(3, 16), VQ(3, 16)]) for _ in range(2)], interleave=True),
    "library": lambda: LibraryQuantizer("VectorQuantize", 6, [32], {"codebook_size": 32, "rotation_trick": True}),
    "library_residual": lambda: LibraryQuantizer("ResidualVQ", 6, [16, 16], {"codebook_size": 16, "num_quantizers": 2}),
}
# several grids, coarse first: a code depends on a neighbourhood
SCALED = {
    "multiscale": lambda: MultiScale([VQ(6, 32), VQ(6, 16)], [2, 1], mode="nearest"),
    "snac": lambda: MultiScale(
        [Projected(VQ(3, 16, cosine=True), 6) for _ in range(2)], [2, 1], mode="nearest", through=True
    ),
    "scales": lambda: ScaleResidual(VQ(6, 32), [1, 2, 5], mode="nearest"),
    "scales_drop": lambda: ScaleResidual(
        SharedIndexVQ([4, 2], 32), [1, 2, 5], mode="nearest", drop=1.0, sum_losses=False
    ),
    "scales_binary": lambda: Normalized(ScaleResidual(BSQ(6), [1, 2, 5], mode="nearest", gain=0.7)),
    "product_of_scales": lambda: Product([ScaleResidual(VQ(3, 16), [1, 2, 5], mode="nearest") for _ in range(2)]),
}
MAKERS = POINTWISE | SCALED
SIZES = [(7,), (4, 5), (3, 4, 5)]

every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
pointwise = pytest.mark.parametrize("make", POINTWISE.values(), ids=POINTWISE)


def latents(size: tuple[int, ...], dtype: torch.dtype = torch.float32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 6, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


def in_range(quantizer: Quantizer, grids: tuple[torch.Tensor, ...]) -> bool:
    return all(
        int(grid[:, k].min()) >= 0 and int(grid[:, k].max()) < size
        for grid, sizes in zip(grids, quantizer.codebook_sizes, strict=True)
        for k, size in enumerate(sizes)
    )


@every
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_codes_are_the_whole_message(make, size, dtype, autocast) -> None:
    torch.manual_seed(0)
    quantizer: Quantizer = make().eval()
    z = latents(size, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = quantizer(z)
        again = quantizer.decode(out.grids)
    assert tuple(tuple(grid.shape[1:]) for grid in out.grids) == quantizer.shapes(size)
    assert all(grid.dtype == torch.int64 and len(grid) == 2 for grid in out.grids)
    assert in_range(quantizer, out.grids)
    assert out.z.dtype == torch.float32  # computed and returned in full precision
    assert torch.equal(again, out.z)
    for grid, plain in zip(out.grids, quantizer(z.float()).grids, strict=True):
        assert torch.equal(grid, plain)
    assert all(value.dtype == torch.float32 and value.dim() == 0 for value in out.losses.values())
    assert all(torch.isfinite(value) and not value.requires_grad for value in out.stats.values())


@pointwise
def test_keep_masks_values_losses_and_statistics(make) -> None:
    torch.manual_seed(0)
    quantizer = make().eval()
    z = latents((6,))
    keep = torch.arange(6).expand(2, 1, 6) < torch.tensor([4, 2]).view(2, 1, 1)
    out = quantizer(z, (keep,))
    assert not out.z.masked_select(~keep).any() and not out.grids[0].masked_select(~keep).any()
    assert torch.equal(quantizer.decode(out.grids, (keep,)), out.z)
    other = quantizer(torch.where(keep, z, latents((6,)) * 9 + 5), (keep,))
    for name, value in other.losses.items():
        if name != "disentangle":
            torch.testing.assert_close(value, out.losses[name])
    for name, value in other.stats.items():
        assert torch.equal(value, out.stats[name])


@every
@pytest.mark.parametrize("training", [False, True])
def test_nothing_kept_is_zero(make, training) -> None:
    torch.manual_seed(0)
    quantizer = make().train(training)
    keep = tuple(torch.zeros(2, 1, *[1] * (len(shape) - 1), dtype=torch.bool) for shape in quantizer.shapes((6,)))
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    out = quantizer(latents((6,)), keep)
    assert not out.z.any() and not any(grid.any() for grid in out.grids)
    assert all(torch.isfinite(value) for value in (*out.losses.values(), *out.stats.values()))
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@pointwise
def test_dropped_vectors_never_move_a_codebook(make) -> None:
    keep = (torch.arange(6).expand(2, 1, 6) < 3,)
    states = []
    for tail in (0.0, 50.0):
        torch.manual_seed(0)
        quantizer = make().train()
        z = latents((6,))
        z[:, :, 3:] += tail
        for _ in range(3):
            torch.manual_seed(3)
            quantizer(z, keep)
        states.append(quantizer.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@every
def test_gradient_reaches_encoder_and_parameters(make) -> None:
    torch.manual_seed(0)
    quantizer = make().train()
    z = latents((6,)).requires_grad_()
    out = quantizer(z)
    weight = torch.randn(out.z.shape, generator=torch.Generator().manual_seed(2))
    ((out.z * weight).sum() + sum(out.losses.values())).backward()
    assert torch.isfinite(z.grad).all() and z.grad.abs().sum() > 0
    for name, parameter in quantizer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@every
def test_a_non_finite_batch_leaves_the_state_alone(make) -> None:
    torch.manual_seed(0)
    quantizer = make().train()
    quantizer(latents((5,)))
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    bad = latents((5,))
    bad[0, 2, 3] = math.nan
    out = quantizer(bad)
    assert in_range(quantizer, out.grids)
    for key, value in quantizer.state_dict().items():
        # members of a product whose own channels are finite may learn
        assert torch.isfinite(value).all() and (isinstance(quantizer, Product) or torch.equal(value, before[key])), key


@every
def test_codes_out_of_range_raise_before_any_gather(make) -> None:
    quantizer = make().eval()
    shapes = quantizer.shapes((5,))
    size = max(quantizer.codebook_sizes[0])
    for code in (-1, size):
        grids = [torch.zeros(1, *shape, dtype=torch.int64) for shape in shapes]
        grids[0][0, quantizer.codebook_sizes[0].index(size), 0] = code
        with pytest.raises(ValueError, match=f"0..{size - 1}"):
            quantizer.decode(tuple(grids))
    with pytest.raises(ValueError, match="grids"):
        quantizer.decode(())
    many = tuple(torch.zeros(1, shape[0] + 1, *shape[1:], dtype=torch.int64) for shape in shapes)
    with pytest.raises(ValueError, match="codebooks"):
        quantizer.decode(many)


@every
@pytest.mark.parametrize("training", [False, True])
def test_empty_batches_pass(make, training) -> None:
    quantizer = make().train(training)
    out = quantizer(torch.zeros(0, 6, 4))
    assert out.z.shape == (0, 6, 4)
    assert all(grid.shape == (0, *shape) for grid, shape in zip(out.grids, quantizer.shapes((4,)), strict=True))


@every
def test_state_survives_a_round_trip(make) -> None:
    torch.manual_seed(0)
    quantizer = make().train()
    quantizer(latents((5,)))
    torch.manual_seed(7)
    other = make()
    other.load_state_dict(quantizer.state_dict())
    a, b = quantizer.eval()(latents((5,))), other.eval()(latents((5,)))
    assert torch.equal(a.z, b.z)
    assert all(torch.equal(x, y) for x, y in zip(a.grids, b.grids, strict=True))
