"""Each loss term against an independent formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmtok.losses import L1, L2, CodeEntropy, ConvNeXtLogits, LogCosh, Perceptual, ProxyCodes, Teacher
from mmtok.types import Batch, Reconstruction, Tokens


def _tokens(batch: int) -> Tokens:
    return Tokens(
        (torch.zeros(batch, 1, 1, dtype=torch.int64),), (torch.ones(batch, 1, 1, dtype=torch.bool),), ((2,),),
        torch.ones(batch, 2, dtype=torch.int64),
    )


def _recon(x=None, **heads) -> Reconstruction:
    count = len(x) if x is not None else len(next(iter(heads.values())))
    return Reconstruction(x, _tokens(count), heads=heads)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1


def test_sample_distances(pair):
    x, y = pair
    recon, batch = _recon(x), Batch.of(y)
    torch.testing.assert_close(L1()(recon, batch, 0), F.l1_loss(x, y))
    torch.testing.assert_close(L2()(recon, batch, 0), F.mse_loss(x, y))
    torch.testing.assert_close(LogCosh(3.0)(recon, batch, 0), (3 * (x - y)).cosh().log().mean() / 3)
    far = LogCosh(1000.0)(_recon(x * 1e3), Batch.of(y), 0)
    assert torch.isfinite(far) and far > 100


def test_padding_of_short_items_does_not_count():
    x, y = torch.zeros(2, 1, 6), torch.ones(2, 1, 6)
    y[0, 0, 3:] = 100.0
    batch = Batch(y, ("a", "b"), torch.tensor([[3], [6]]), lengths=torch.tensor([3, 6]))
    assert L1()(_recon(x), batch, 0).item() == 1.0
    assert L2()(_recon(x), batch, 0).item() == 1.0


def test_perceptual_moves_only_the_reconstruction(pair):
    x, y = (t.clone().requires_grad_() for t in pair)
    term = Perceptual("alex")
    loss = term(_recon(x), Batch.of(y), 0)
    loss.backward()
    assert loss.shape == () and x.grad.abs().sum() > 0 and y.grad is None
    assert not list(term.parameters()) and not term.state_dict()


def test_perceptual_crop_looks_at_one_random_square():
    x, y = torch.rand(1, 3, 64, 64, requires_grad=True), torch.rand(1, 3, 64, 64)
    whole = Perceptual("alex")(_recon(x), Batch.of(y), 0)
    torch.testing.assert_close(Perceptual("alex", crop=1000)(_recon(x), Batch.of(y), 0), whole)
    side, seen = 36, set()
    for seed in range(6):
        torch.manual_seed(seed)
        (grad,) = torch.autograd.grad(Perceptual("alex", crop=side)(_recon(x), Batch.of(y), 0), x)
        rows, columns = (grad.abs().sum((0, 1, axis)).nonzero()[:, 0] for axis in (3, 2))
        assert rows.max() - rows.min() < side and columns.max() - columns.min() < side
        seen.add((int(rows.min()), int(columns.min())))
    assert len(seen) > 1


def test_convnext_logits_equal_torchvision(pair, tmp_path, monkeypatch):
    from torchvision.models import convnext_small

    torch.manual_seed(1)
    with torch.device("meta"):
        network = convnext_small(weights=None).eval()
    state = {name: 0.05 * torch.randn(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(state, assign=True)
    torch.save(network.state_dict(), tmp_path / "convnext_small-0c510722.pth")
    monkeypatch.setenv("MMTOK_WEIGHTS_DIR", str(tmp_path))
    x, y = pair

    def logits(images):
        images = F.interpolate((images + 1) / 2, (224, 224), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return network((images - mean) / std)

    expected = (logits(x) - logits(y)).square().mean()
    torch.testing.assert_close(ConvNeXtLogits()(_recon(x), Batch.of(y), 0), expected.detach(), rtol=1e-3, atol=1e-7)
    assert expected > 0


def test_proxy_codes_are_a_cross_entropy():
    torch.manual_seed(0)
    logits, codes = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    batch = Batch(torch.zeros(2, 3, 8, 8), ("a", "b"), torch.ones(2, 2), features={"proxy_codes": codes})
    loss = ProxyCodes()(_recon(proxy_logits=logits), batch, 0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, codes))
    with pytest.raises(ValueError, match="ProxyCodes.teacher"):
        ProxyCodes()(_recon(proxy_logits=logits), Batch.of(torch.zeros(2, 3, 8, 8)), 0)
    with pytest.raises(ValueError, match="ProxyCodes.head"):
        ProxyCodes()(_recon(torch.zeros(2, 3, 8, 8)), batch, 0)


def test_entropy_is_lowest_for_sure_and_varied_codes():
    sure = torch.eye(4)[None].movedim(1, -1) * 50  # [1, 4 codes, 4 positions], each its own code
    same = torch.zeros(1, 4, 4)
    same[:, 0] = 50
    term = CodeEntropy()
    low, high = term(_recon(code_logits=sure), None, 0), term(_recon(code_logits=same), None, 0)
    torch.testing.assert_close(low, -torch.tensor(4.0).log())
    assert abs(high.item()) < 1e-6


def test_a_teacher_is_held_but_never_saved_trained_or_switched():
    owner = nn.Module()
    owner.teacher = Teacher(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    owner.train().to(torch.float64)
    assert not owner.state_dict() and not list(owner.parameters())
    owner.load_state_dict({})
    assert not owner.teacher.module.training and owner.teacher.module[0].weight.dtype == torch.float64
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    owner.teacher(x).sum().backward()
    assert owner.teacher.module[0].weight.grad is None and x.grad is not None
