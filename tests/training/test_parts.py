"""Objective, schedules, groups, EMA and preparation, without a Trainer."""

import pytest
import torch
from torch import nn

from mmtok.losses import L1
from mmtok.quantizers.vq import VQ
from mmtok.tokenizer import Tokenizer
from mmtok.training import EMA, Constant, Cosine, Linear, Objective, Steps, prepare
from mmtok.training.config_file import read_config_file
from mmtok.training.optimizers import parameter_groups, scale_learning_rates, set_learning_rate
from mmtok.types import Batch


def _tokenizer() -> Tokenizer:
    decoder = nn.Sequential(nn.ConvTranspose2d(4, 3, 2, 2))
    decoder.forward = lambda z, keep: decoder[0](z)
    return Tokenizer(nn.Conv2d(3, 4, 2, 2), VQ(4, 8), decoder, (2, 2), (8, 8))


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"l1": 1.0, "commit": 0.25}, "objective.weights.codebook is missing"),
        ({"l1": 1.0, "commit": 0.25, "codebook": 1.0, "comit": 1.0}, "objective.weights.comit matches no loss"),
        ({"commit": 0.25, "codebook": 1.0}, "objective.weights.l1 is missing"),
    ],
)
def test_every_loss_has_a_weight_and_every_weight_a_loss(weights, message):
    torch.manual_seed(0)
    batch = Batch.of(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=message):
        Objective({"l1": L1()}, weights).generator(_tokenizer()(batch), batch, 0)


def test_terms_are_weighted_and_named_as_their_weights():
    torch.manual_seed(0)
    batch, tokenizer = Batch.of(torch.rand(2, 3, 8, 8)), _tokenizer()
    recon = tokenizer(batch)
    terms = Objective({"l1": L1()}, {"l1": 2.0, "commit": 0.25, "codebook": 0.0}).generator(recon, batch, 0)
    assert set(terms) == {"l1", "commit", "codebook"} and terms["codebook"] == 0
    torch.testing.assert_close(terms["l1"], 2 * (recon.x - batch.x).abs().mean())
    torch.testing.assert_close(terms["commit"], 0.25 * recon.losses["commit"])


def test_schedules():
    assert [Constant(warmup=4)(s) for s in (0, 3, 4, 100)] == [0.25, 1, 1, 1]
    cosine = Cosine(total=110, warmup=10, floor=0.1)
    assert [cosine(s) for s in (9, 10, 60, 500)] == [1, 1, pytest.approx(0.55), pytest.approx(0.1)]
    steps = Steps([20, 30], factor=0.5, warmup=10)
    assert [steps(n) for n in (0, 19, 20, 29, 30)] == [0.1, 1.0, 0.5, 0.5, 0.25]
    assert Linear(total=100)(25) == 0.75 and Linear(total=100, floor=0.5)(1000) == 0.5
    with pytest.raises(ValueError, match="schedule.total"):
        Cosine(total=5, warmup=5)


def test_groups_scale_rates_and_lift_decay():
    named = [(n, nn.Parameter(torch.zeros(1))) for n in ("prior.a", "prior.bias", "encoder.w", "encoder.bias")]
    optimizer = torch.optim.AdamW(
        parameter_groups(named, {"prior.*": {"lr_scale": 50}}, ["*bias"]), lr=1e-4, weight_decay=0.1
    )
    scale_learning_rates(optimizer)
    set_learning_rate(optimizer, 0.5)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    expected = [(2.5e-3, 0.1), (2.5e-3, 0.0), (5e-5, 0.1), (5e-5, 0.0)]
    for (_, parameter), (lr, decay) in zip(named, expected, strict=True):
        assert found[id(parameter)] == (pytest.approx(lr), decay)
    for settings, no_decay, key in (({"pior.*": {}}, [], "groups"), ({}, ["nrom"], "no_decay")):
        with pytest.raises(ValueError, match=f"model.{key}: pattern .* matches no trainable"):
            parameter_groups(named, settings, no_decay)


class WithIntegers(nn.Module):
    """FSQ-like buffers: their averages at decay .9995 would truncate to wrong codes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("levels", torch.tensor([8, 6, 5, 3]))
        self.register_buffer("basis", torch.tensor([1, 8, 48, 240]))


def test_ema_averages_parameters_only_and_follows_its_formula():
    module, ema, expected = WithIntegers(), EMA(decay=0.9995), None
    for step in range(1, 50):
        module.weight.data += 1
        ema.update(module, step)
        live = module.weight.detach().clone()
        expected = live if expected is None else 0.9995 * expected + 0.0005 * live
    with ema.applied(module):
        torch.testing.assert_close(module.weight.data, expected)
        assert module.levels.tolist() == [8, 6, 5, 3] and module.basis.tolist() == [1, 8, 48, 240]
    assert module.weight[0] == 49
    again = EMA(decay=0.9995)
    again.load_state_dict(ema.state_dict(), module)
    assert torch.equal(again.averages["weight"], ema.averages["weight"]) and again.updates == 49


def test_a_ramped_average_forgets_the_first_weights_of_a_short_run() -> None:
    module, ema = nn.Linear(1, 1, bias=False), EMA(decay=0.999, ramp=True)
    expected = 1.0
    for n in range(40):
        module.weight.data.fill_(1.0 if n == 0 else 0.0)
        ema.update(module, n + 1)
        expected *= 1.0 if n == 0 else (1 + n) / (10 + n)
    assert float(ema.averages["weight"]) == pytest.approx(expected, rel=1e-5)
    assert expected < 1e-4


def test_ema_with_a_period_moves_and_without_an_update_leaves_live_weights():
    module, ema = WithIntegers(), EMA(decay=0.5, period=2, start=3)
    with ema.applied(module):
        assert module.weight[0] == 0 and not ema.swapped
    for step in range(1, 9):
        module.weight.data += 1
        ema.update(module, step)
    assert ema.updates == 3  # steps 4, 6, 8
    assert ema.averages["weight"][0] == 0.5 * (0.5 * 4 + 0.5 * 6) + 0.5 * 8


def test_freeze_keeps_statistics_and_parameters():
    tokenizer = _tokenizer()
    modules = prepare.freeze(tokenizer, ["encoder", "quantizer", "decoder.*.bias"])
    assert tokenizer.quantizer in modules and not tokenizer.quantizer.codebook.requires_grad
    assert [n for n, p in tokenizer.named_parameters() if p.requires_grad] == ["decoder.0.weight"]
    with pytest.raises(ValueError, match="model.freeze: pattern 'encodr'"):
        prepare.freeze(tokenizer, ["encodr"])


def test_compiling_keeps_keys_and_refuses_the_quantizer(monkeypatch):
    tokenizer = _tokenizer()
    keys, x = list(tokenizer.state_dict()), torch.rand(1, 3, 8, 8)
    expected = tokenizer.latents(x)
    monkeypatch.setattr(torch, "compile", lambda f, *args, **kwargs: lambda *a, **k: f(*a, **k) + 1)
    prepare.compile_modules(tokenizer, ["encoder"])
    assert list(tokenizer.state_dict()) == keys
    torch.testing.assert_close(tokenizer.latents(x), expected + 1)  # the compiled call is really used
    for names, message in ((["quantizer"], "holds the quantizer"), (["nope"], "matches no module")):
        with pytest.raises(ValueError, match=message):
            prepare.compile_modules(tokenizer, names)


def test_recomputed_activations_give_the_same_gradient():
    grads = []
    for names in ([], ["encoder", "decoder"]):
        torch.manual_seed(0)
        tokenizer = _tokenizer()
        prepare.recompute_activations(tokenizer, names)
        tokenizer(Batch.of(torch.rand(2, 3, 8, 8))).x.square().sum().backward()
        grads.append(tokenizer.encoder.weight.grad)
    assert torch.equal(*grads)


def test_config_files_stack_and_tiny_lies_on_top(tmp_path):
    (tmp_path / "base.yaml").write_text("a: {b: 1, c: 2}\nm: {class_path: X, init_args: {p: 1}}\ntiny: {a.b: 7}\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\na: {c: 3}\nm: {class_path: Y}\ntiny: {a.d.e: 9}\n")
    assert read_config_file(tmp_path / "top.yaml") == {"a": {"b": 1, "c": 3}, "m": {"class_path": "Y"}}
    assert read_config_file(tmp_path / "top.yaml", tiny=True)["a"] == {"b": 7, "c": 3, "d": {"e": 9}}
    (tmp_path / "loop.yaml").write_text("base: loop.yaml\n")
    (tmp_path / "plain.yaml").write_text("a: 1\n")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    for name, tiny, message in (
        ("loop.yaml", False, "leads back"), ("plain.yaml", True, "declares none"), ("bad.yaml", False, "bad.yaml: not"),
        ("none.yaml", False, "none.yaml does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            read_config_file(tmp_path / name, tiny)
