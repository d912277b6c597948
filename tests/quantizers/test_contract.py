"""What every quantizer must hold, whatever its kind, shape, type and autocast state."""

from __future__ import annotations

import math

import pytest
import torch

from mmtok.quantizers.base import Quantizer
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.vq import VQ

MAKERS = {
    "vq": lambda: VQ(6, 32),
    "vq_l2": lambda: VQ(6, 32, l2_norm=True),
    "vq_ema": lambda: VQ(6, 32, ema_decay=0.9),
    "vq_ema_l2": lambda: VQ(6, 32, l2_norm=True, ema_decay=0.9),
    "vq_one_code": lambda: VQ(6, 1),
    "fsq": lambda: FSQ([8, 5, 5, 3, 2, 2]),
}
SIZES = [(7,), (4, 5), (3, 4, 5)]

every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def latents(size: tuple[int, ...], dtype: torch.dtype = torch.float32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 6, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


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
    (sizes,) = quantizer.codebook_sizes
    assert out.grids[0].dtype == torch.int64 and out.grids[0].shape == (2, len(sizes), *size)
    assert quantizer.shapes(size) == ((len(sizes), *size),)
    assert out.grids[0].min() >= 0 and out.grids[0].max() < sizes[0]
    assert out.z.dtype == torch.float32  # computed and returned in full precision
    assert torch.equal(quantizer.decode(out.grids), out.z)
    assert torch.equal(out.grids[0], quantizer(z.float()).grids[0])
    assert all(value.dtype == torch.float32 and value.dim() == 0 for value in out.losses.values())


@every
def test_keep_masks_values_losses_and_statistics(make) -> None:
    torch.manual_seed(0)
    quantizer = make().eval()
    z = latents((6,))
    keep = torch.arange(6).expand(2, 1, 6) < torch.tensor([4, 2]).view(2, 1, 1)
    out = quantizer(z, (keep,))
    assert not out.z.masked_select(~keep).any() and not out.grids[0].masked_select(~keep).any()
    assert torch.equal(quantizer.decode(out.grids, (keep,)), out.z)
    other = torch.where(keep, z, latents((6,)) * 9 + 5)
    for name, value in quantizer(other, (keep,)).losses.items():
        torch.testing.assert_close(value, out.losses[name])


@every
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
def test_gradient_reaches_the_encoder_unchanged(make) -> None:
    quantizer = make().train()
    z = latents((5,)).requires_grad_()
    out = quantizer(z)
    weight = torch.randn(out.z.shape, generator=torch.Generator().manual_seed(2))
    (out.z * weight).sum().backward()
    assert torch.isfinite(z.grad).all() and z.grad.abs().sum() > 0


@every
def test_a_non_finite_batch_leaves_the_state_alone(make) -> None:
    quantizer = make().train()
    quantizer(latents((5,)))
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    bad = latents((5,))
    bad[0, 2, 3] = math.nan
    out = quantizer(bad)
    (sizes,) = quantizer.codebook_sizes
    assert out.grids[0].min() >= 0 and out.grids[0].max() < sizes[0]
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@every
def test_codes_out_of_range_raise_before_any_gather(make) -> None:
    quantizer = make().eval()
    size = quantizer.codebook_sizes[0][0]
    for code in (-1, size):
        with pytest.raises(ValueError, match=f"0..{size - 1}"):
            quantizer.decode((torch.full((1, 1, 3), code),))
    with pytest.raises(ValueError, match="grids"):
        quantizer.decode(())
    with pytest.raises(ValueError, match="codebooks"):
        quantizer.decode((torch.zeros(1, 2, 3, dtype=torch.int64),))


@every
def test_empty_batches_pass(make) -> None:
    out = make().eval()(torch.zeros(0, 6, 4))
    assert out.z.shape == (0, 6, 4) and out.grids[0].shape == (0, 1, 4)
