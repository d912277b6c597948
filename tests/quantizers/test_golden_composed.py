"""Residual, split, product and multi-scale quantizers reproduce the reference implementations (see test_golden.py)."""

from __future__ import annotations

import pytest
import torch
from golden_quantizers import State, close, load, rows, same_gradient, with_table

from mmtok.quantizers.lookup_free import BSQ
from mmtok.quantizers.multiscale import MultiScale
from mmtok.quantizers.projected import Normalized, Projected
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.scales import ScaleResidual, SharedPhi
from mmtok.quantizers.shared_index import SharedIndexVQ
from mmtok.quantizers.split import Product, SplitResidual
from mmtok.quantizers.vq import VQ

# ---- residual and split ---------------------------------------------------------------------------------------------


def ema_depth(weights: State, prefix: str, sums: str, counts: str, smoothing: float) -> VQ:
    total, count = weights[prefix + sums], weights[prefix + counts]
    quantizer = VQ(total.shape[1], len(total), ema_decay=0.99, ema_smoothing=smoothing, revival=0)
    table = weights.get(prefix + "embed", total / count.clamp(min=1e-5)[:, None])
    for name, value in (("codebook", table), ("ema_sums", total), ("ema_counts", count)):
        getattr(quantizer, name).copy_(value)
    return quantizer


def test_encodec_depths_straight_through_and_ema() -> None:
    io, weights = load("audio/encodec")
    depths = [
        ema_depth(weights, f"quantizer.vq.layers.{i}._codebook.", "embed_avg", "cluster_size", 1e-5) for i in range(4)
    ]
    quantizer = Residual(depths, through=True).eval()
    out = quantizer(io["latent.0"])
    assert torch.equal(out.grids[0], io["codes.0"])
    sums = quantizer.partial_sums(out.grids)
    for depth in (1, 2, 4):
        close(sums[depth - 1], io[f"quantized_nq{depth}.0"])
        keep = ((torch.arange(4) < depth).view(1, 4, 1),)
        close(quantizer.decode(out.grids, keep), io[f"quantized_nq{depth}.0"])
    z = io["train.input"].clone().requires_grad_()
    out = quantizer.train()(z)
    assert torch.equal(out.grids[0], io["train.codes"])
    close(out.z, io["train.quantized"])
    close(out.losses["commit"], io["train.penalty"])
    same_gradient(torch.autograd.grad(out.losses["commit"], z, retain_graph=True)[0], io["train.penalty_grad"])
    same_gradient(torch.autograd.grad((out.z * io["train.probe"]).sum(), z)[0], io["train.probe_grad"])
    for i, depth in enumerate(depths):
        for name, theirs in (("codebook", "embed"), ("ema_sums", "embed_avg"), ("ema_counts", "cluster_size")):
            close(getattr(depth, name), io[f"train.after.{i}.{theirs}"], rtol=1e-5, atol=1e-6)


def test_mimi_split_depths_and_detached_residuals() -> None:
    io, weights = load("audio/mimi_moshi")

    def part(name: str, depth: int) -> Projected:
        prefix = f"quantizer.{name}.vq.layers.{{}}._codebook."
        depths = [ema_depth(weights, prefix.format(i), "embedding_sum", "cluster_usage", 0.0) for i in range(depth)]
        quantizer = Projected(Residual(depths), 16, weight_norm=False, bias=False)
        quantizer.project_in.weight.data.copy_(weights[f"quantizer.{name}.input_proj.weight"][:, :, 0])
        quantizer.project_out.weight.data.copy_(weights[f"quantizer.{name}.output_proj.weight"][:, :, 0])
        return quantizer

    quantizer = SplitResidual(part("rvq_first", 1), part("rvq_rest", 2)).eval()
    out = quantizer(io["latent"])
    assert torch.equal(out.grids[0], io["codes"])
    for depth in (1, 2, 3):
        close(quantizer.decode(out.grids, ((torch.arange(3) < depth).view(1, 3, 1),)), io[f"quantized_nq{depth}"])
    rest = quantizer.rest.train()
    z = io["train.input"].clone().requires_grad_()
    out = rest(z)
    assert torch.equal(out.grids[0], io["train.codes"])
    close(out.z, io["train.quantized"])
    close(out.losses["commit"], io["train.penalty"])
    same_gradient(torch.autograd.grad(out.losses["commit"], z)[0], io["train.penalty_grad"])
    for i, depth in enumerate(rest.quantizer.depths):
        close(depth.ema_sums, io[f"train.after.{i}.embedding_sum"], rtol=1e-5, atol=1e-6)
        close(depth.ema_counts, io[f"train.after.{i}.cluster_usage"], rtol=1e-5, atol=1e-6)


def factorized(weights: State, prefix: str, dim: int, table: str = "codebook.weight") -> Projected:
    """One quantizer of DAC's layout, weight norm under either spelling."""
    codebook = weights[prefix + table]
    quantizer = Projected(with_table(VQ(codebook.shape[1], len(codebook), cosine=True, revival=0), codebook), dim)
    for side in ("in", "out"):
        layer = getattr(quantizer, f"project_{side}")
        layer.bias.data.copy_(weights[f"{prefix}{side}_proj.bias"])
        for ours, names in (
            ("original0", ("weight_g", "parametrizations.weight.original0")),
            ("original1", ("weight_v", "parametrizations.weight.original1")),
        ):
            (value,) = (weights[key] for name in names if (key := f"{prefix}{side}_proj.{name}") in weights)
            getattr(layer.parametrizations.weight, ours).data.copy_(value.flatten(1))
    return quantizer


def test_dac_codes_losses_gradients_and_depth_drop() -> None:
    io, weights = load("audio/dac")
    quantizer = Residual([factorized(weights, f"quantizer.quantizers.{i}.", 16) for i in range(3)], through=True).eval()
    out = quantizer(io["latent"])
    assert torch.equal(out.grids[0], io["codes"])
    for depth, value in enumerate(quantizer.partial_sums(out.grids), 1):
        close(value, io[f"quantized_nq{depth}"])
    close(3 * out.losses["commit"], io["commitment_loss"])  # the reference sums over depths
    close(3 * out.losses["codebook"], io["codebook_loss"])
    z = io["latent"].clone().requires_grad_()
    out = quantizer.train()(z)
    loss = 3 * (0.25 * out.losses["commit"] + out.losses["codebook"])
    grads = torch.autograd.grad(loss, [z, quantizer.depths[1].quantizer.codebook], retain_graph=True)
    same_gradient(grads[0], io["grad.loss_latent"])
    same_gradient(grads[1], io["grad.loss_codebook1"])
    same_gradient(torch.autograd.grad((out.z * io["grad.probe"]).sum(), z)[0], io["grad.probe_latent"])
    depths = io["depth.n_quantizers"]
    out = quantizer(io["latent"], ((torch.arange(3) < depths[:, None])[:, :, None],))
    close(out.z, io["depth.quantized"])
    close(depths.float().mean() * out.losses["commit"], io["depth.commitment_loss"])
    close(depths.float().mean() * out.losses["codebook"], io["depth.codebook_loss"])


def test_bigcodec_codes_and_gradient() -> None:
    io, weights = load("audio/bigcodec")
    quantizer = factorized(weights, "generator.quantizer.layers.0.", 12, "_codebook.weight").train()
    z = io["latent"].clone().requires_grad_()
    out = quantizer(z)
    assert torch.equal(out.grids[0], io["codes"])
    close(out.z, io["quantized"])
    close(quantizer.inward(io["latent"]), io["projected"])
    loss = 0.25 * out.losses["commit"] + out.losses["codebook"]
    close(loss, io["train.loss"][0])
    same_gradient(torch.autograd.grad(loss, z)[0], io["train.grad_latent"])


# ---- scales ---------------------------------------------------------------------------------------------------------


def test_snac_three_rates() -> None:
    io, weights = load("audio/snac")
    levels = [factorized(weights, f"quantizer.quantizers.{i}.", 24) for i in range(3)]
    quantizer = MultiScale(levels, [4, 2, 1], mode="nearest", through=True).eval()
    out = quantizer(io["latent"])
    for level, grid in enumerate(out.grids):
        assert torch.equal(grid[:, 0], io[f"codes.{level}"])
    close(out.z, io["quantized"])


def with_phi(quantizer: ScaleResidual, weights: State, prefix: str) -> ScaleResidual:
    assert quantizer.phi is not None
    for i, conv in enumerate(quantizer.phi.convs):
        conv.weight.data.copy_(weights[f"{prefix}quant_resi.qresi_ls.{i}.weight"])
        conv.bias.data.copy_(weights[f"{prefix}quant_resi.qresi_ls.{i}.bias"])
    return quantizer


def test_var_codes_running_sums_and_loss() -> None:
    io, weights = load("image/var_vqvae")
    table = with_table(VQ(4, 48, revival=0), weights["quantize.embedding.weight"])
    quantizer = with_phi(ScaleResidual(table, [1, 2, 3, 5], SharedPhi(4, 4)), weights, "quantize.").eval()
    out = quantizer(io["f"])
    for i, grid in enumerate(out.grids):
        assert torch.equal(grid.flatten(1), io[f"indices_{i}"])
    close(torch.stack(quantizer.partial_sums(out.grids)), io["f_hat"])
    close(out.losses["codebook"] + 0.25 * out.losses["commit"], io["loss_vq"][0])


@pytest.mark.parametrize("branch", [0, 1])
def test_imagefolder_scales_and_quantizer_dropout(branch) -> None:
    io, weights = load("image/imagefolder_msrq")
    prefix = f"quantizes.{branch}."
    table = with_table(VQ(4, 32, cosine=True, revival=0), weights[f"{prefix}embedding.weight"])
    quantizer = with_phi(ScaleResidual(table, [1, 1, 2, 4], SharedPhi(4, 4)), weights, prefix).eval()
    f = io["f"].split(16, 2)[branch].reshape(3, 4, 4, 4)
    out = quantizer(f)
    assert torch.equal(rows(out.grids), io[f"indices_branch{branch}"])
    close(torch.stack(quantizer.partial_sums(out.grids)), io[f"f_hat_branch{branch}"])
    close(out.losses["codebook"], io[f"loss_vq_branch{branch}"][0])
    keep = tuple((io["dropout_keep"] > i).view(-1, 1, 1, 1) for i in range(4))
    out = quantizer.train()(f, keep)
    close(out.z, io[f"f_hat_dropout_branch{branch}"])
    close(out.losses["codebook"], io[f"loss_vq_dropout_branch{branch}"][0])


def test_imagefolder_binary_scales() -> None:
    io, weights = load("image/imagefolder_msbr")
    inside = ScaleResidual(
        BSQ(6, little_endian=True, entropy_temperature=None), [1, 2, 4], SharedPhi(6, 3), gain=0.7
    )
    quantizer = Normalized(with_phi(inside, weights, "")).eval()
    out = quantizer(io["f"])
    assert torch.equal(rows(out.grids), io["indices"])
    close(torch.stack(inside.partial_sums(out.grids)), io["f_hat"])
    lengths = io["dropout_keep"].clone()
    lengths[2:] = 3  # only the first half of the batch was cut
    out = quantizer.train()(io["f"], tuple((lengths > i).view(-1, 1, 1, 1) for i in range(3)))
    close(out.z, io["f_hat_dropout"])
    close(out.losses["codebook"], io["loss_vq_dropout"][0])


def test_tokenflow_shared_index() -> None:
    io, weights = load("image/tokenflow_quantizer")
    tables = [weights[f"quantize.embedding_{name}.weight"] for name in ("vqkd", "vqgan")]
    inside = with_table(SharedIndexVQ([6, 4], 40, revival=0), torch.cat(tables, 1))
    quantizer = ScaleResidual(inside, [1, 2, 4], sum_losses=False).eval()
    z = torch.cat([io["z_sem"].transpose(1, 2).reshape(2, 6, 4, 4), io["z_pix"]], 1)
    out = quantizer(z)
    assert torch.equal(rows(out.grids), io["indices"])
    close(out.z, io["z_q"])
    close(quantizer.partial_sums(out.grids)[1], io["z_q_first2"])
    close(out.losses["codebook"], io["loss_vq"][0])


def test_fqgan_two_codebooks_and_disentanglement() -> None:
    io, weights = load("image/fqgan_dual")
    members = [
        with_table(VQ(8, 32, l2_norm=True, revival=0), weights[f"quantize_{name}.embedding.weight"])
        for name in ("vis", "sem")
    ]
    out = Product(members, disentangle=True).eval()(torch.cat([io["z_vis"], io["z_sem"]], 1))
    assert torch.equal(out.grids[0], torch.stack([io["indices_vis"], io["indices_sem"]], 1))
    close(out.z, torch.cat([io["z_q_vis"], io["z_q_sem"]], 1))
    close(0.1 * out.losses["disentangle"], io["loss_disentangle"][0])
