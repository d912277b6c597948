"""Learned and frozen codebooks beyond plain VQ: starts, re-seeding, sampling, peers in the public library."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from vector_quantize_pytorch import FSQ as LibraryFSQ
from vector_quantize_pytorch import SimVQ as LibrarySimVQ
from vector_quantize_pytorch import VectorQuantize

from mmtok.keep import Prefix
from mmtok.quantizers.continuous import Gaussian, Identity
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.ibq import IBQ
from mmtok.quantizers.kmeans import FrozenKMeans, fit_kmeans
from mmtok.quantizers.library import LibraryQuantizer
from mmtok.quantizers.perturbed import PerturbedVQ
from mmtok.quantizers.projected import Projected
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.shared_index import SharedIndexVQ
from mmtok.quantizers.simvq import SimVQ
from mmtok.quantizers.stochastic import StochasticVQ
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import ChoiceTail, PartialTail, UniformTail
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch

LEARNED = {
    "ema": lambda: VQ(8, 64, ema_decay=0.9, usage_decay=0.9),
    "ema_smoothed": lambda: VQ(8, 64, ema_decay=0.9, ema_smoothing=1e-5, usage_decay=0.9),
    "gradient": lambda: VQ(8, 64, usage_decay=0.9),
    "cosine": lambda: VQ(8, 64, cosine=True, usage_decay=0.9),
    "l2": lambda: VQ(8, 64, l2_norm=True, usage_decay=0.9),
    "kmeans": lambda: VQ(8, 64, ema_decay=0.9, kmeans_steps=10, usage_decay=0.9),
    "cvq": lambda: VQ(8, 64, cvq=True, usage_decay=0.9),
    "shared_index": lambda: SharedIndexVQ([4, 4], 64, usage_decay=0.9),
}


def mixture(steps: int, noise: float = 0.1):
    """Batches [1, 8, 256] around 64 centres."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(64, 8, generator=generator) * 4
    for _ in range(steps):
        picks = torch.randint(64, (256,), generator=generator)
        yield (centres[picks] + noise * torch.randn(256, 8, generator=generator)).T[None]


@pytest.mark.parametrize("make", LEARNED.values(), ids=LEARNED)
def test_nine_codes_in_ten_are_used_on_a_mixture(make) -> None:
    torch.manual_seed(1)
    quantizer = make().train()
    if not (quantizer.kmeans_steps or quantizer.cvq):  # CVQ pulls to the nearest vector: it needs codes apart
        quantizer.codebook.data.mul_(0.01).add_(1.0)  # a collapsed start: all codes in one corner
        if quantizer.ema_decay is not None:
            quantizer.ema_sums.copy_(quantizer.codebook)
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.Adam(parameters, 1e-2) if parameters else None
    for z in mixture(200):
        losses = quantizer(z).losses
        if optimizer:
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
    quantizer.eval()
    seen = torch.cat([quantizer(z).grids[0].flatten() for z in mixture(10)]).unique()
    assert len(seen) / 64 > 0.9


def test_residual_depths_stay_in_use() -> None:
    torch.manual_seed(1)
    quantizer = Residual([VQ(8, 32, ema_decay=0.9, kmeans_steps=5) for _ in range(3)]).train()
    for z in mixture(60, noise=1.0):
        quantizer(z)
    stats = quantizer.eval()(torch.cat(list(mixture(8, noise=1.0)))).stats
    assert all(float(stats[f"usage_{depth}"]) > 0.9 for depth in range(3))


def test_k_means_start_waits_for_a_good_batch_and_happens_once() -> None:
    quantizer = VQ(8, 64, ema_decay=1 - 1e-6, kmeans_steps=10, revival=0).train()
    first = next(mixture(1))
    quantizer(torch.full_like(first, torch.nan))
    assert not bool(quantizer.initialized)
    before = float(VQ.forward(quantizer.eval(), first).losses["commit"])
    quantizer.train()(first)
    assert bool(quantizer.initialized)
    assert float(quantizer.eval()(first).losses["commit"]) < before / 10
    table = quantizer.codebook.clone()
    quantizer.train()(first + 100)
    torch.testing.assert_close(quantizer.codebook, table, atol=0.1, rtol=0)


def test_cvq_moves_rare_codes_to_their_nearest_vector_and_leaves_busy_ones() -> None:
    quantizer = VQ(2, 2, cvq=True).train()
    quantizer.codebook.data.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0]]))
    quantizer.usage.copy_(torch.tensor([0.9, 0.0]))
    quantizer(torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]).T[None] * 0.1)
    torch.testing.assert_close(quantizer.codebook.data[0], torch.zeros(2))
    torch.testing.assert_close(quantizer.codebook.data[1], torch.full((2,), 0.9), atol=0.06, rtol=0)


def test_stochastic_codes_follow_the_softmax_of_cosines() -> None:
    torch.manual_seed(0)
    quantizer = StochasticVQ(4, 6, temperature=0.5)
    z = torch.randn(4)
    codes = quantizer.train()(z.view(1, 4, 1).expand(1, 4, 20000)).grids[0].flatten()
    share = torch.bincount(codes, minlength=6) / 20000
    expected = (F.normalize(z, dim=0) @ quantizer.table().T / 0.5).softmax(0)
    torch.testing.assert_close(share, expected.detach(), atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="temperature"):
        StochasticVQ(4, 6, temperature=0.0)


def test_perturbation_moves_the_asked_share_among_near_codes() -> None:
    torch.manual_seed(0)
    quantizer = PerturbedVQ(4, 64, rate=0.5, share=0.5, neighbours=8)
    z = torch.randn(8, 4, 500)
    plain = quantizer.eval()(z)
    out = quantizer.train()(z)
    moved = out.grids[0] != plain.grids[0]
    assert not moved[4:].any() and abs(float(moved[:4].float().mean()) - 0.5 * 7 / 8) < 0.03
    unit = F.normalize(z, dim=1).movedim(1, -1).flatten(0, 1)
    near = torch.cdist(unit, quantizer.table().detach()).argsort(1)[:, :8].view(8, 500, 8)
    assert (near == out.grids[0][:, 0, :, None]).any(-1).all()
    for name, value in plain.losses.items():
        torch.testing.assert_close(out.losses[name], value)  # those of the true codes
    torch.testing.assert_close(quantizer.decode(out.grids), out.z, atol=1e-6, rtol=0)
    quantizer.strength = 0.5
    assert not (quantizer(z).grids[0] != plain.grids[0])[2:].any()
    with pytest.raises(ValueError, match="neighbours"):
        PerturbedVQ(4, 8, neighbours=9)


def test_simvq_equals_the_public_library_and_moves_every_code() -> None:
    theirs = LibrarySimVQ(dim=6, codebook_size=32).eval()
    ours = SimVQ(6, 32).eval()
    ours.codebook.data.copy_(theirs.frozen_codebook)
    ours.transform.weight.data.copy_(theirs.code_transform.weight)
    z = torch.randn(2, 6, 40)
    value, codes, _ = theirs(z.transpose(1, 2))
    out = ours(z)
    assert torch.equal(out.grids[0][:, 0], codes)
    torch.testing.assert_close(out.z, value.transpose(1, 2))
    before = ours.table().detach()
    optimizer = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], 0.1)
    torch.stack(list(ours.train()(z).losses.values())).sum().backward()
    optimizer.step()
    assert ((ours.table() - before).abs().sum(1) > 0).all()


def test_euclidean_ema_step_equals_the_public_library() -> None:
    theirs = VectorQuantize(dim=6, codebook_size=16, decay=0.9, threshold_ema_dead_code=0)
    ours = VQ(6, 16, ema_decay=0.9, ema_smoothing=1e-5, revival=0)
    ours.codebook.copy_(theirs.codebook)
    ours.ema_sums.copy_(theirs._codebook.embed_avg[0])
    ours.ema_counts.copy_(theirs._codebook.cluster_size[0])
    z = torch.randn(2, 6, 100)
    value, codes, commit = theirs.train()(z.transpose(1, 2))
    out = ours.train()(z)
    assert torch.equal(out.grids[0][:, 0], codes)
    torch.testing.assert_close(out.losses["commit"], commit[0] if commit.dim() else commit)
    torch.testing.assert_close(ours.codebook, theirs.codebook, rtol=1e-5, atol=1e-6)


def test_library_codebooks_refuse_to_drift_apart(monkeypatch) -> None:
    monkeypatch.setattr("mmtok.quantizers.library.world", lambda: 2)
    quantizer = LibraryQuantizer("VectorQuantize", 6, [8], {"codebook_size": 8})
    with pytest.raises(ValueError, match="not synchronised"):
        quantizer.train()(torch.randn(2, 6, 4))
    quantizer.eval()(torch.randn(2, 6, 4))


def test_library_classes_keep_their_codes_and_values() -> None:
    z = torch.randn(2, 6, 40)
    quantizer = LibraryQuantizer("ResidualFSQ", 6, [240, 240], {"levels": [8, 6, 5], "num_quantizers": 2}).eval()
    value, codes, *_ = quantizer.module(z.transpose(1, 2))
    out = quantizer(z)
    assert torch.equal(out.grids[0], codes.transpose(1, 2).long())
    torch.testing.assert_close(out.z, value.transpose(1, 2))
    with pytest.raises(ValueError, match="Residual for depth drop"):
        quantizer(z, (torch.tensor([True, False]).view(1, 2, 1),))
    with pytest.raises(ValueError, match="has no Nothing"):
        LibraryQuantizer("Nothing", 6, [8], {})


def test_fsq_with_the_margin_of_the_paper() -> None:
    theirs, ours = LibraryFSQ([7, 5, 5], channel_first=True).eval(), FSQ([7, 5, 5], margin=-1e-3).eval()
    z = torch.randn(2, 3, 50) * 0.8
    agree = (ours(z).grids[0][:, 0] == theirs(z)[1].long()).float().mean()
    assert agree > 0.97
    with pytest.raises(ValueError, match="margin"):
        FSQ([2, 3], margin=-1e-3)


def test_offline_fit_reads_batches_and_lowers_the_distance() -> None:
    vectors = torch.cat([z[0].T for z in mixture(12)])
    errors, tables = [], []
    for steps in (0, 1, 5, 20):
        table = fit_kmeans(lambda: vectors.split(100), 64, steps)
        tables.append(table)
        errors.append(float(torch.cdist(vectors.double(), table.double()).min(1).values.square().mean()))
    assert errors[0] > errors[1] > errors[2] >= errors[3]
    assert torch.equal(tables[-1], fit_kmeans(lambda: vectors.split(100), 64, 20))  # the seed decides
    quantizer = FrozenKMeans(8, 64)
    quantizer.codebook.copy_(tables[-1])
    out = quantizer.train()(vectors.T[None])
    assert out.losses == {} and torch.equal(quantizer.codebook, tables[-1])
    with pytest.raises(ValueError, match="no vector"):
        fit_kmeans(lambda: [], 4)
    assert fit_kmeans(lambda: [vectors[:3]], 5, 2).shape == (5, 8)


def test_a_shared_index_weighs_its_parts() -> None:
    quantizer = SharedIndexVQ([2, 1], 2, [1.0, 0.0]).eval()
    quantizer.codebook.data.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 1.0]]))
    z = torch.tensor([[2.0, 0.1, 3.0]]).T[None]
    assert quantizer(z).grids[0].item() == 0  # the second part counts nothing
    quantizer = SharedIndexVQ([2, 1], 2, [1.0, 9.0]).eval()
    quantizer.codebook.data.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 1.0]]))
    out = quantizer(z)
    assert out.grids[0].item() == 1
    assert out.z.flatten().tolist() == [0.0, 1.0, 1.0]  # values are not weighted
    with pytest.raises(ValueError, match="weights"):
        SharedIndexVQ([2, 1], 4, [1.0])


def test_projection_masks_its_bias() -> None:
    quantizer = Projected(VQ(2, 8), 6).eval()
    torch.nn.init.ones_(quantizer.project_out.bias)
    keep = (torch.tensor([True, False, True]).view(1, 1, 3),)
    out = quantizer(torch.randn(1, 6, 3), keep)
    assert not out.z[..., 1].any() and out.z[..., 0].all()


def test_continuous_bottlenecks_send_nothing() -> None:
    mean, log_variance = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    z = torch.cat([mean, log_variance], 1)
    quantizer = Gaussian(3)
    out = quantizer.eval()(z, ())
    assert torch.equal(out.z, mean) and out.grids == () and quantizer.shapes((4,)) == ()
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1).mean()
    torch.testing.assert_close(out.losses["kl"], kl)
    drawn = torch.stack([quantizer.train()(z).z for _ in range(4000)])
    torch.testing.assert_close(drawn.std(0), (log_variance / 2).exp(), rtol=0.1, atol=0)
    assert torch.equal(Identity(3)(mean).z, mean)
    with pytest.raises(ValueError, match="continuous"):
        quantizer.decode(())
    with pytest.raises(ValueError, match="6 channels"):
        quantizer(mean)


def test_gradient_moves_every_ibq_code_off_a_collapse() -> None:
    torch.manual_seed(1)
    quantizer = IBQ(8, 64, entropy_temperature=1.0).train()
    optimizer = torch.optim.Adam(quantizer.parameters(), 5e-2)
    for z in mixture(150):
        losses = quantizer(F.normalize(z, dim=1)).losses
        optimizer.zero_grad()
        (losses["index"] + 0.25 * losses["codebook"] + losses["sample_entropy"] + losses["diversity"]).backward()
        optimizer.step()
    seen = torch.cat([quantizer.eval()(F.normalize(z, dim=1)).grids[0].flatten() for z in mixture(10)]).unique()
    assert len(seen) > 0.5 * 64


def test_a_tokenizer_runs_on_a_continuous_bottleneck() -> None:
    class Decoder(torch.nn.Conv2d):
        def forward(self, z, keep):
            assert keep == ()
            return super().forward(z)

    tokenizer = Tokenizer(torch.nn.Conv2d(3, 8, 1), Gaussian(4), Decoder(4, 3, 1), (1, 1), (8, 8))
    batch = Batch.of(torch.rand(2, 3, 8, 8))
    recon = tokenizer.train()(batch)
    assert recon.x.shape == (2, 3, 8, 8) and set(recon.losses) == {"kl"}
    tokens = tokenizer.eval().encode(batch)
    for use in (lambda: tokens.bits, lambda: tokens.bpp, lambda: tokenizer.decode(tokens)):
        with pytest.raises(ValueError, match="continuous"):
            use()


def test_sampled_depths_of_a_tail_reach_the_residual() -> None:
    torch.manual_seed(0)
    quantizer = Residual([VQ(4, 8, revival=0) for _ in range(4)]).train()
    for tail in (UniformTail(Prefix(1)), UniformTail(Prefix(1), per_batch=True), ChoiceTail([1, 3], Prefix(1)),
                 PartialTail(0.5, Prefix(1))):  # fmt: skip
        keep = tail.sample(quantizer.shapes((6,)), 8)
        out = quantizer(torch.randn(8, 4, 6), keep)
        depths = keep[0].expand(8, 4, 6).sum(1)[:, 0]
        rows = torch.stack([sum(v[i] for v in quantizer.embeddings(out.grids)[: int(n)]) for i, n in enumerate(depths)])
        assert tail.coding.symbols(keep, quantizer.shapes((6,)))[:, 0].tolist() == (depths - 1).tolist()
        torch.testing.assert_close(out.z, rows)
        assert not out.grids[0][~keep[0].expand(8, 4, 6)].any()
