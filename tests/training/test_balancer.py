"""EnCodec's gradient balancer: published gradients, shares, processes, mistakes."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from balancer_worker import balance, recon_of
from safetensors.torch import load_file

from mmtok.losses import L1, L2, Adversarial
from mmtok.losses.base import Term
from mmtok.training import Balancer, Objective
from mmtok.types import Batch

ROOTS = [Path(__file__).parents[1] / "golden"] + [Path(p) for p in [os.environ.get("MMTOK_GOLDEN")] if p]


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_three_steps_equal_the_published_balancer(root):
    folder = root / "audio" / "spectral_losses"
    config, io = json.loads((folder / "config.json").read_text())["balancer"], load_file(folder / "io.safetensors")
    balancer = Balancer(list(config["weights"]), config["ema_decay"], config["total_norm"], config["per_batch_item"])
    count = config["samples"]
    real = io["real"][..., :count]
    for step, scale in enumerate(config["scale_per_step"]):
        fake = io["fake"][..., :count].clone().requires_grad_()
        out = scale * fake
        squares = 50 * (out - real).square().mean()
        losses = {"l1": (out - real).abs().mean(), "l2": squares, "sum": 7 * out.pow(3).mean()}
        terms = balancer(out, losses, config["weights"])
        for name, value in losses.items():
            torch.testing.assert_close(terms[name].detach(), config["weights"][name] * value.detach())
        sum(terms.values()).backward()
        expected = io[f"balancer.step{step}.grad"]
        torch.testing.assert_close(fake.grad, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


class Commit(Term):
    def forward(self, recon, batch, step):
        return recon.heads["z"].square().mean()


def test_shares_hold_whatever_the_scale_of_a_loss():
    """Gradients at the output stand in the ratio of the weights; other losses keep their own gradient."""
    torch.manual_seed(0)
    x, y, z = torch.randn(3, 4, 1, 50)
    for scale in (1.0, 1000.0):
        objective = Objective(
            {"l1": L1(), "l2": L2(), "commit": Commit()}, {"l1": 1.0, "l2": 3.0, "commit": 0.5},
            Balancer(["l1", "l2"], total_norm=2.0),
        )
        out, latent = (scale * y).requires_grad_(), z.clone().requires_grad_()
        recon = recon_of(out, {"z": latent})
        terms = objective.generator(recon, Batch.of(x), 0)
        torch.testing.assert_close(terms["l2"].detach(), 3 * (out - x).square().mean().detach())
        norms = {}
        for name in ("l1", "l2"):
            (gradient,) = torch.autograd.grad(terms[name], out, retain_graph=True)
            norms[name] = gradient.flatten(1).norm(dim=1).mean()
        torch.testing.assert_close(torch.stack([*norms.values()]), torch.tensor([0.5, 1.5]))
        terms["commit"].backward()
        torch.testing.assert_close(latent.grad, 0.5 * 2 * z / z.numel())
        assert out.grad is None
        assert set(objective.stats()) == {"balancer_norm_l1", "balancer_norm_l2"}


def test_a_missing_or_bad_loss_leaves_no_trace():
    balancer = Balancer(["a", "b"])
    x = torch.ones(2, 1, 4, requires_grad=True)
    balancer(x, {"a": x.sum()}, {"a": 1.0, "b": 1.0})
    before = {name: value.clone() for name, value in balancer.state_dict().items()}
    assert before["counts"].tolist() == [2, 0]
    terms = balancer(x, {"a": (x * float("nan")).sum()}, {"a": 1.0, "b": 1.0})
    assert not terms["a"].isfinite() and all(torch.equal(v, before[k]) for k, v in balancer.state_dict().items())


def test_processes_share_one_average(tmp_path, processes):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [processes.start(balance, rank, 2, port, str(tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    balance(0, 1, 0, str(tmp_path))
    parts = [torch.load(tmp_path / f"{rank}_of_2.pt", weights_only=True) for rank in range(2)]
    whole = torch.load(tmp_path / "0_of_1.pt", weights_only=True)
    for part in parts:
        torch.testing.assert_close(part["sums"], whole["sums"])
    torch.testing.assert_close(torch.cat([part["grad"] for part in parts]), whole["grad"])


def test_mistakes_are_named():
    terms, weights = {"l1": L1(), "adv": Adversarial(torch.nn.Conv1d(1, 1, 1), ramp=5)}, {"l1": 1.0, "adv": 1.0}
    weights["adv_disc"] = 1.0
    with pytest.raises(ValueError, match="balancer.losses: mel is no term; there are l1, adv"):
        Objective(terms, weights, Balancer(["mel"]))
    with pytest.raises(ValueError, match="balancer.losses: adv scales itself"):
        Objective(terms, weights, Balancer(["l1", "adv"]))
    with pytest.raises(ValueError, match="must name losses, each once"):
        Balancer(["l1", "l1"])
    objective = Objective({"commit": Commit()}, {"commit": 1.0}, Balancer(["commit"]))
    recon = recon_of(torch.ones(1, 1, 3, requires_grad=True), {"z": torch.ones(1, requires_grad=True)})
    with pytest.raises(ValueError, match="commit does not depend on the reconstruction"):
        objective.generator(recon, Batch.of(torch.ones(1, 1, 3)), 0)
