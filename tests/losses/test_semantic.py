"""Distillation from a speech model: published values, masks, the frozen model, what is saved."""

import pytest
import torch
from golden_losses import batch_of, folders, load_golden, near, recon_of

from mmtok.losses import Semantic, SpeechModel
from mmtok.models.audio.distilled import DistilledCodec
from mmtok.nn.seanet import SEANetDecoder, SEANetEncoder
from mmtok.quantizers.projected import Projected
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.split import SplitResidual
from mmtok.quantizers.vq import VQ
from mmtok.training import Objective
from mmtok.types import Batch, Reconstruction


def pair(student, teacher, lengths=None, hop=10):
    """(reconstruction with a head, batch with precomputed features)."""
    x = torch.zeros(len(student), 1, student.shape[1] * hop)
    recon, batch = recon_of(x), batch_of(x, lengths)
    batch.features["semantic"] = teacher
    return Reconstruction(recon.x, recon.tokens, heads={"semantic": student}), batch


@pytest.mark.parametrize("folder", folders("spectral_losses"), ids=lambda f: f.parents[1].name)
@pytest.mark.parametrize("axis", ["feature", "time"])
def test_published_values_and_gradients(folder, axis):
    _, _, io = load_golden(folder)
    name = {"feature": "d_axis", "time": "t_axis"}[axis]
    student = io["distill.student"].clone().requires_grad_()
    value = Semantic(axis)(*pair(student, io["distill.teacher"]), 0)
    torch.testing.assert_close(value.detach(), io[f"distill.{name}"].view(()), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(value, student)
    near(gradient, io[f"distill.grad_{name}"], 1e-3)


@pytest.mark.parametrize("axis", ["feature", "time", "cosine"])
def test_frames_of_padding_do_not_count(axis):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 12, 6)
    term = Semantic(axis, hop=10)
    values = []
    for noise in (0.0, 50.0):
        student[1, 7:], teacher[1, 7:] = noise, -noise
        values.append(term(*pair(student, teacher, [120, 75]), 0))
    torch.testing.assert_close(values[0], values[1])
    if axis == "cosine":
        cosines = torch.cosine_similarity(student, teacher, dim=2)
        torch.testing.assert_close(values[0], 1 - (cosines[0].sum() + cosines[1, :7].sum()) / 19)
    with pytest.raises(ValueError, match="Semantic.hop: set it"):
        Semantic(axis)(*pair(student, teacher, [120, 75]), 0)


def test_pooling_is_centred():
    """A teacher four times as fast: each codec frame hears eight teacher frames around its own four."""
    teacher = torch.arange(48.0).view(1, 48, 1)
    batch = batch_of(torch.zeros(1, 1, 120))
    batch.features["semantic"] = teacher
    found = Semantic("cosine", pool=4)._target(batch)
    assert found.shape == (1, 12, 1)
    assert found[0, 5, 0] == teacher[0, 18:26].mean() and found[0, 0, 0] == teacher[0, :6].mean()


def test_the_speech_model(speech_model):
    from transformers import AutoModel

    torch.manual_seed(1)
    x = torch.randn(2, 2, 3200) * 0.1
    found = SpeechModel(speech_model, 16000).eval()(x)
    assert found.shape == (2, 10, 16) and not found.requires_grad
    mono = x.mean(1)
    mono = (mono - mono.mean(1, keepdim=True)) / mono.std(1, unbiased=False, keepdim=True)
    model = AutoModel.from_pretrained(speech_model).eval()
    with torch.no_grad():
        states = model(torch.nn.functional.pad(mono, (160, 160)), output_hidden_states=True).hidden_states
    torch.testing.assert_close(found, torch.stack(states).mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(SpeechModel(speech_model, 16000, layer=1).eval()(x), states[1], atol=1e-4, rtol=1e-4)
    assert SpeechModel(speech_model, 24000).eval()(torch.randn(1, 1, 4800)).shape == (1, 10, 16)
    teacher = SpeechModel(speech_model, 16000).eval()
    ragged = teacher(x, torch.tensor([3200, 1600]))
    torch.testing.assert_close(ragged[1:, :5], teacher(x[1:, :, :1600]), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="teacher.layer: this model has hidden states 0 to 2, got 3"):
        SpeechModel(speech_model, 16000, layer=3)
    with pytest.raises(ValueError, match="teacher.path: nowhere/at/all is no folder"):
        SpeechModel("nowhere/at/all", 16000)


def codec(split):
    sizes = {"dim": 8, "n_filters": 2, "ratios": [8, 5, 4, 2], "lstm": 0, "causal": False}
    rest = Residual([VQ(8, 16, ema_decay=0.99) for _ in range(2)], through=True)
    quantizer = rest
    if split:
        parts = (VQ(4, 16, ema_decay=0.99), Residual([VQ(4, 16, ema_decay=0.99)]))
        quantizer = SplitResidual(*(Projected(part, 8, weight_norm=False, bias=False) for part in parts))
    return DistilledCodec(SEANetEncoder(**sizes), quantizer, SEANetDecoder(**sizes), 16000, semantic_dim=16)


@pytest.mark.parametrize("split", [False, True], ids=["residual", "split"])
def test_the_first_codebook_learns_and_the_teacher_is_not_saved(speech_model, split):
    torch.manual_seed(0)
    model = codec(split)
    objective = Objective(
        {"semantic": Semantic("cosine" if split else "feature", SpeechModel(speech_model, 16000), hop=320)},
        {"semantic": 120.0, "commit": 0.0},
    )
    assert not list(objective.parameters()) and not objective.state_dict()
    assert objective.train().terms["semantic"].teacher.module.training is False
    batch = Batch.of(torch.randn(2, 1, 3200) * 0.1)
    recon = model.train()(batch)
    terms = objective.generator(recon, batch, 0)
    terms["semantic"].backward()
    named = {name: p.grad for name, p in model.named_parameters()}
    assert named["transform.weight"].abs().sum() > 0
    first = next(g for name, g in named.items() if name.startswith("encoder"))
    assert first is not None and first.abs().sum() > 0
    assert all(g is None for name, g in named.items() if name.startswith("decoder"))
    if split:  # the gradient passes through the projections of the first part only
        assert named["quantizer.first.project_out.weight"].abs().sum() > 0
        assert named["quantizer.rest.project_out.weight"] is None


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Semantic.teacher: name a model, or bring batch features named hubert"):
        Semantic(features="hubert")(*pair(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3)), 0)
    with pytest.raises(ValueError, match=r"are \[4, 3\], the teacher's \[16, 3\]; set the model's semantic_dim, or"):
        Semantic()(*pair(torch.zeros(1, 4, 3), torch.zeros(1, 16, 3)), 0)
