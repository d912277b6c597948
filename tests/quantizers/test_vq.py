"""Codebook learning: exact nearest codes, EMA, revival."""

from __future__ import annotations

import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from mmtok.kernels import nearest_code
from mmtok.quantizers.vq import VQ


@pytest.mark.parametrize(("n", "v", "d"), [(1, 1, 1), (33, 17, 5), (1000, 513, 8), (0, 4, 3), (7, 4096, 2)])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_nearest_code_agrees_with_float64(n, v, d, shift) -> None:
    generator = torch.Generator().manual_seed(n + v)
    x = torch.randn(n, d, generator=generator) + shift
    c = torch.randn(v, d, generator=generator) + shift
    distances = torch.cdist(x.double(), c.double()).square()
    found = nearest_code(x, c)[0]
    assert found.shape == (n,) and found.dtype == torch.int64
    if n:
        excess = distances.gather(1, found[:, None])[:, 0] - distances.min(1).values
        scale = (x.double() - shift).square().sum(1) + (c.double() - shift).square().sum(1).max()
        assert (excess <= 4e-6 * scale).all()


def test_the_lowest_index_wins_a_tie() -> None:
    codebook = torch.randn(50, 3).repeat(2, 1)
    assert torch.equal(nearest_code(codebook, codebook)[0], torch.arange(50).repeat(2))


def test_losses_and_gradients_follow_the_paper() -> None:
    quantizer = VQ(4, 8).train()
    z = torch.randn(2, 4, 3, requires_grad=True)
    out = quantizer(z)
    code = quantizer.codebook[out.grids[0][:, 0]].movedim(-1, 1)
    torch.testing.assert_close(out.losses["commit"], (z - code).square().mean())
    torch.testing.assert_close(out.losses["commit"], out.losses["codebook"])
    (g_z,) = torch.autograd.grad(out.losses["commit"], z, retain_graph=True)
    torch.testing.assert_close(g_z, 2 * (z - code).detach() / z.numel())
    (g_code,) = torch.autograd.grad(out.losses["codebook"], quantizer.codebook)
    assert g_code.abs().sum() > 0


def test_eval_codes_equal_the_public_library() -> None:
    theirs = VectorQuantize(dim=6, codebook_size=64, use_cosine_sim=True).eval()
    ours = VQ(6, 64, l2_norm=True).eval()
    ours.codebook.data.copy_(theirs.codebook)
    z = torch.randn(3, 50, 6)
    value, codes, _ = theirs(z)
    out = ours(z.transpose(1, 2))
    assert torch.equal(out.grids[0][:, 0], codes)
    torch.testing.assert_close(out.z.transpose(1, 2), value)


def test_ema_codebook_is_the_running_mean_of_its_vectors() -> None:
    quantizer = VQ(2, 2, ema_decay=0.5, revival=0).train()
    quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    quantizer.ema_sums.copy_(quantizer.codebook)
    z = torch.tensor([[2.0, 0.0], [4.0, 0.0], [-3.0, 0.0]]).T[None]
    quantizer(z)
    # counts 1 -> (1 + 2) / 2 and (1 + 1) / 2; sums 1 -> (1 + 6) / 2 and -1 -> (-1 - 3) / 2
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[3.5 / 1.5, 0.0], [-2.0, 0.0]]))


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_revival_fills_a_codebook_that_would_collapse(ema_decay) -> None:
    torch.manual_seed(0)
    centres = torch.randn(64, 8) * 4

    def usage(revival: float) -> float:
        torch.manual_seed(1)
        quantizer = VQ(8, 64, ema_decay=ema_decay, revival=revival, usage_decay=0.9)
        quantizer.codebook.data.mul_(0.01)
        if ema_decay is not None:
            quantizer.ema_sums.copy_(quantizer.codebook)
        optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2) if ema_decay is None else None
        seen = torch.zeros(64, dtype=torch.bool)
        for step in range(250):
            picks = torch.randint(64, (256,))
            out = quantizer((centres[picks] + 0.1 * torch.randn(256, 8)).T[None])
            if optimizer:
                optimizer.zero_grad()
                sum(out.losses.values()).backward()
                optimizer.step()
            if step >= 230:
                seen[out.grids[0].flatten()] = True
        return float(seen.float().mean())

    assert usage(revival=0.05) > 0.9
    assert usage(revival=0.0) < 0.6


def test_bad_arguments_name_their_key() -> None:
    with pytest.raises(ValueError, match="codebook_size"):
        VQ(4, 0)
    with pytest.raises(ValueError, match="ema_decay"):
        VQ(4, 8, ema_decay=1.0)
