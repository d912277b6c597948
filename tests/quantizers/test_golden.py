"""Quantizers reproduce what the reference implementations computed: codes, values, losses, gradients, EMA buffers.

The folders under tests/golden hold random weights under published key names and the reference's numbers; each says in
its README how far a float32 implementation may differ.
"""

from __future__ import annotations

import pytest
import torch
from golden_quantizers import State, close, first, load, same_gradient, with_table
from torch import Tensor

from mmtok.quantizers.base import to_vectors
from mmtok.quantizers.bernoulli import BernoulliBits
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.ibq import IBQ
from mmtok.quantizers.lookup_free import BSQ, LFQ
from mmtok.quantizers.perturbed import PerturbedVQ
from mmtok.quantizers.projected import Normalized
from mmtok.quantizers.stochastic import StochasticVQ
from mmtok.quantizers.vq import VQ

# ---- one codebook ---------------------------------------------------------------------------------------------------


def test_omnitokenizer_codes_and_three_ema_steps() -> None:
    io, weights = load("video/omnitokenizer_vq")
    used = Normalized(with_table(VQ(8, 64), weights["codebook.embeddings"])).eval()
    out = used(io["pre_quant"])
    assert torch.equal(out.grids[0][:, 0], io["indices"])
    close(out.z, io["z_q"])
    quantizer = with_table(VQ(8, 64, ema_decay=0.99, ema_smoothing=1e-7, revival=0), weights["codebook.embeddings"])
    quantizer.ema_sums.copy_(weights["codebook.z_avg"])
    quantizer.ema_counts.copy_(weights["codebook.N"])
    for z, codes, commit in zip(io["ema_in"], io["ema_indices"], io["ema_commitment"], strict=True):
        out = quantizer(z)
        assert torch.equal(out.grids[0][:, 0], codes)
        close(0.25 * out.losses["commit"], commit)
    close(quantizer.codebook, io["ema_embeddings"], atol=1e-6)
    close(quantizer.ema_counts, io["ema_N"], atol=1e-6)
    close(quantizer.ema_sums, io["ema_z_avg"], atol=1e-6)


def test_glm_codes_of_valid_positions() -> None:
    io, weights = load("audio/glm_tokenizer")
    quantizer = with_table(VQ(16, 32), weights["codebook.weight"]).eval()
    keep = io["token_mask"].bool()[:, None]
    out = quantizer(first(io["pooled"]), (keep,))
    assert torch.equal(out.grids[0][keep], io["codes"][keep[:, 0]])
    close(0.25 * out.losses["commit"], io["train.loss"])


def test_lavit_and_seed_codes() -> None:
    io, weights = load("image/lavit")
    quantizer = Normalized(with_table(VQ(6, 32), weights["tokenizer_encoder.quantize.embedding.weight"])).eval()
    out = quantizer(io["z"].T[None])
    assert torch.equal(out.grids[0][0, 0], io["indices"])
    close(out.z[0].T, io["z_q"])
    io, weights = load("image/seed_quantizer")
    quantizer = with_table(VQ(6, 32), weights["quantize.embedding.weight"]).eval()
    out = quantizer(first(io["z"]))
    assert torch.equal(out.grids[0][:, 0], io["indices"])
    close(out.losses["commit"] + 0.25 * out.losses["codebook"], io["loss_legacy"][0])


def test_phenaki_cosine_codes() -> None:
    io, weights = load("video/phenaki_cvivit_vq")
    quantizer = with_table(VQ(16, 64, cosine=True), weights["vq._codebook.embed"][0]).eval()
    out = quantizer(first(io["encoder_out"]))
    assert torch.equal(out.grids[0][:, 0], io["indices"])
    close(out.z, first(io["z_q"]))


def test_larp_codes_and_losses() -> None:
    io, weights = load("video/larp")
    quantizer = with_table(StochasticVQ(8, 64), weights["bottleneck.regularizer.embedding.weight"]).eval()
    out = quantizer(first(io["projected_z"]))
    assert torch.equal(out.grids[0][:, 0], io["indices"])
    close(out.z, first(io["z_q"]))
    close(0.25 * out.losses["commit"] + out.losses["codebook"], io["loss_q"][0])


def test_robusttok_codes_and_perturbation() -> None:
    io, weights = load("image/imagefolder_vq_perturbation")
    quantizer = with_table(PerturbedVQ(6, 40, 0.8, 0.7, 6), weights["embedding.weight"])
    out = quantizer.eval()(io["z"])
    assert torch.equal(out.grids[0][:, 0], io["indices"])
    close(out.z, io["z_q"])
    close(out.losses["codebook"], io["loss_vq"][0])
    # the reference's own random numbers in place of ours
    table = quantizer.table().detach()
    distances = torch.cdist(quantizer.unit(to_vectors(io["z"])), table)
    ranks = io["neighbour_rank"] * (io["uniform"] <= 0.8)
    codes = distances.argsort(1).gather(1, ranks[:, None])[: 2 * 9, 0]
    close(quantizer.train().move(out, codes, table).z, io["z_q_perturbed"])


def test_ibq_codes_losses_and_the_gradient_of_every_code() -> None:
    io, weights = load("image/ibq")
    quantizer = IBQ(6, 40, entropy_eps=1e-5).train()
    quantizer.codebook.data.copy_(weights["quantize.embedding.weight"])

    def total(losses: State) -> Tensor:
        return losses["index"] + losses["commit"] + 0.25 * losses["codebook"]

    out = quantizer(io["z"])
    assert torch.equal(out.grids[0][:, 0], io["indices"])
    close(out.z, io["z_q"])
    close(total(out.losses), io["loss_quant"][0])
    close(out.losses["sample_entropy"], io["loss_sample_entropy"][0])
    close(-out.losses["diversity"], io["loss_avg_entropy"][0])
    out = quantizer(io["z"][:1])
    (total(out.losses) + out.z.square().mean()).backward()
    same_gradient(quantizer.codebook.grad, io["grad_codebook"])


# ---- scalars and bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "prefix"), [("sweep", "fsq_sweep"), ("edge", "fsq_edge"), ("full", "full")])
def test_elastictok_fsq(name, prefix) -> None:
    io, _ = load("video/elastictok_fsq")
    quantizer = FSQ([8, 8, 8, 5, 5, 5], margin=-1e-3, tan_shift=True).eval()
    if name == "full":
        out, codes, values = quantizer(first(io["pre_quant_full"])), io["indices_full"], io["z_q_full"]
    else:
        z = io[f"{prefix}_in"]
        z = z[:, None].expand(-1, 6) if z.dim() == 1 else z
        out, codes, values = quantizer(z.T[None]), io[f"{prefix}_indices"][None], io[f"{prefix}_codes"][None]
    assert torch.equal(out.grids[0][:, 0], codes)
    close(out.z, first(values))
    if name == "edge":  # made so that the usual form is wrong everywhere
        assert not (FSQ([8, 8, 8, 5, 5, 5])(z.T[None]).grids[0][:, 0] == codes).any()


def test_xcodec2_bounds_twice() -> None:
    io, _ = load("audio/xcodec2")
    assert torch.equal(FSQ([4] * 4, double_bound=True).eval()(io["fsq_input"]).grids[0], io["codes"])


def test_vidtok_codes_and_entropies_of_32768_codes() -> None:
    io, _ = load("video/vidtok_v1_0")
    out = FSQ([8] * 5, entropy_temperature=0.01).eval()(io["encoder_out"])
    assert torch.equal(out.grids[0][:, 0], io["indices"])
    close(out.z, io["z_q"])
    entropy = out.losses["sample_entropy"] + out.losses["diversity"]
    close(0.3 * entropy + 0.25 * out.losses["commit"], io["aux_loss"][0])


def test_open_magvit2_bits_and_entropies() -> None:
    io, _ = load("image/open_magvit2_lfq")
    out = LFQ(6, entropy_eps=1e-5).eval()(io["z"])
    assert torch.equal(out.grids[0][:, 0], io["indices"]) and torch.equal(out.z, io["z_q"])
    close(out.losses["commit"], io["loss_commit_unweighted"][0])
    close(out.losses["sample_entropy"], io["loss_per_sample_entropy"][0])
    close(-out.losses["diversity"], io["loss_codebook_entropy"][0])
    parts = LFQ(6, [2, 4])(io["z"]).grids[0]
    assert torch.equal(parts[:, 0], io["indices_pre"]) and torch.equal(parts[:, 1], io["indices_post"])


def test_phenaki_lfq_counts_from_the_highest_bit() -> None:
    io, _ = load("video/phenaki_cvivit_lfq")
    out = LFQ(8, little_endian=False).eval()(first(io["pre_quant"]))
    assert torch.equal(out.grids[0][:, 0], io["indices"])


def test_bsq_bits_groups_and_entropies() -> None:
    io, _ = load("image/bsq_vit")
    out = BSQ(8).eval()(first(io["h"]))
    assert torch.equal(out.grids[0][:, 0], io["indices"])
    close(out.z, first(io["z_q"]))
    close(out.losses["sample_entropy"], io["loss_per_sample_entropy"][0])
    close(-out.losses["diversity"], io["loss_codebook_entropy"][0])
    assert torch.equal(BSQ(8, [4, 4])(first(io["h"])).grids[0], first(io["group_indices"]))


def test_bae_bits_and_values() -> None:
    io, weights = load("image/bae")
    quantizer = BernoulliBits(32, 6).eval()
    quantizer.load_state_dict({
        "project.weight": weights["ae.quantize.proj.0.weight"][:, :, 0, 0],
        "project.bias": weights["ae.quantize.proj.0.bias"], "embedding": weights["ae.quantize.embed.weight"],
    })
    out = quantizer(io["h"])
    assert torch.equal(out.grids[0][:, 0], io["indices"])
    close(out.z, io["z_q"])
