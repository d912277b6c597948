"""Frechet video distance: networks against the reference implementations' numbers, keys, weights, exact sums."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fvd_toys import TinyClipFeatures, clips, model
from torch import nn

from mmtok.metrics.evaluation import Plan
from mmtok.metrics.frechet import Moments, frechet_distance
from mmtok.metrics.video import fvd
from mmtok.metrics.video.evaluation import VideoEvaluation
from mmtok.metrics.video.fvd import ClipDistance, ScriptedI3D, TatsI3D, VideoMAEFeatures, to_square
from mmtok.metrics.video.i3d import I3D
from mmtok.metrics.video.videomae import VideoMAE

TESTS = Path(__file__).parents[2]


def wave(*shape):
    return torch.sin(torch.arange(int(np.prod(shape)), dtype=torch.float64) * 0.37).view(shape).float()


@torch.no_grad()
def filled(network):
    """Weights that any implementation with the published names can be given."""
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            ramp = torch.arange(value.numel(), dtype=torch.float64)
            w = torch.sin(ramp * 1.7 + sum(key.encode()) % 97).view(value.shape)
            if key.endswith("running_var"):
                w = 1 + 0.5 * w
            elif ("bn" in key or "norm" in key) and key.endswith("weight"):
                w = 1 + 0.1 * w
            else:
                w = w * (2 / value[0].numel()) ** 0.5 if value.dim() > 1 else 0.1 * w
            value.copy_(w)
    return network.eval()


@torch.no_grad()
def test_i3d_gives_the_numbers_of_the_reference():
    """The reference is the InceptionI3d of VideoGPT, TATS and cd-fvd, run with the same weights and input."""
    network = filled(I3D())
    found = network(wave(1, 3, 10, 224, 224))[0, [0, 1, 2, 100, 399]]
    expected = [0.095021553337574, -0.05959823355078697, -0.14875927567481995, 0.16597485542297363, 0.17988339066505432]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-5, rtol=0)
    assert sum(p.numel() for p in network.parameters()) == 12_697_264


@torch.no_grad()
def test_videomae_gives_the_numbers_of_the_reference():
    """The reference is cd-fvd's VisionTransformer, `forward_features`."""
    network = filled(VideoMAE(dim=32, layers=2, heads=4, hidden=96))
    found = network((wave(1, 3, 16, 224, 224) + 1) / 2)[0, [0, 1, 2, 16, 31]]
    expected = [-1.063935399055481, -1.247190237045288, -2.119007110595703, 0.3581896722316742, -0.8971157073974609]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-5, rtol=0)
    with torch.device("meta"):
        assert sum(p.numel() for p in VideoMAE().parameters()) == 1_011_610_752  # ViT-g/14 without its head


class Scripted(nn.Module):
    """The interface of the published program, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 400)

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale and not resize and return_features
        return self.layer(x.mean(dim=[2, 3, 4]))


def test_clips_are_resized_as_a_whole_and_called_as_published():
    x = torch.randint(0, 256, (2, 3, 16, 20, 30), dtype=torch.uint8)
    square = to_square(x)
    frame = nn.functional.interpolate(x[1, :, 5][None].float(), (224, 224), mode="bilinear", align_corners=False) / 255
    torch.testing.assert_close(square[1, :, 5], frame[0])
    torch.manual_seed(0)
    features = ScriptedI3D(torch.jit.script(Scripted()), "random")
    mean = square.mean((2, 3, 4)) * 2 - 1
    torch.testing.assert_close(features(x), features.network.layer(mean), atol=1e-4, rtol=1e-4)
    mae = VideoMAEFeatures(filled(VideoMAE(16, 1, 2, 16)), "random")
    longer = torch.cat([x, x], 2)
    assert torch.equal(mae(longer), mae(x)) and mae(x).shape == (2, 16)


NAMES = {"rfvd_i3dts": fvd.I3D_SCRIPT, "rfvd_i3dtats": fvd.I3D_TATS, "rfvd_videomae": fvd.VIDEOMAE}


@pytest.mark.parametrize("name", NAMES)
def test_absent_and_foreign_weights_are_one_clear_line(name, tmp_path, monkeypatch):
    file = NAMES[name].name
    monkeypatch.setenv("MMTOK_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    plan = Plan((1,), (name,))
    with pytest.raises(ValueError, match=f"weights: {file} was not found. Download http.*MMTOK_WEIGHTS_DIR") as error:
        VideoEvaluation(model(17), (17, 64, 64), plan)
    assert "\n" not in str(error.value)
    torch.save({"module": {"fc_norm.weight": torch.ones(3)}}, tmp_path / file)
    with pytest.raises(ValueError, match=f"weights: .*{file}") as error:
        VideoEvaluation(model(17), (17, 64, 64), plan)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        VideoEvaluation(model(17), (17, 64, 64), plan, weights=tmp_path / "absent" / file)


def test_weights_by_path_load_strictly(tmp_path, monkeypatch):
    network = filled(I3D())
    torch.save(network.state_dict(), tmp_path / fvd.I3D_TATS.name)
    with pytest.raises(ValueError, match="sha256 .* another metric"):
        TatsI3D.load(tmp_path)
    digest = fvd.digest_of(tmp_path / fvd.I3D_TATS.name)
    monkeypatch.setitem(fvd.SHA256, fvd.I3D_TATS.name, digest)
    loaded = TatsI3D.load(tmp_path)
    assert loaded.name == "i3dtats" and not loaded.biased
    pairs = zip(loaded.network.state_dict().values(), network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_keys_carry_the_protocol():
    features = TinyClipFeatures()
    assert ClipDistance(features, (17, 128, 128), 12.0).name == "rfvd_tiny_17f_128_12fps"
    assert ClipDistance(features, (16, 64, 96), None).name == "rfvd_tiny_16f_64x96_native"
    assert ClipDistance(features, (16, 64, 64), 29.97).name == "rfvd_tiny_16f_64_29p97fps"
    mae = VideoMAEFeatures(VideoMAE(16, 1, 2, 16), "videomae")
    assert ClipDistance(mae, (17, 128, 128), 8.0).name == "rfvd_videomae_16f_128_8fps"
    with pytest.raises(ValueError, match="at least 16 frames, got 9"):
        ClipDistance(mae, (9, 128, 128), 8.0)


@pytest.mark.parametrize("biased", [False, True])
def test_merged_statistics_equal_a_single_pass_and_the_formula(biased):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(90, 24)) * 3 + 1, rng.normal(size=(90, 24)) @ rng.normal(size=(24, 24))
    pairs = []
    for x in (real, fake):
        once, merged = Moments(24, biased), Moments(24, biased)
        once.update(torch.from_numpy(x))
        for part in np.split(x, [7, 8, 50]):
            share = Moments(24, biased)
            share.update(torch.from_numpy(part))
            merged.merge(share)
        for a, b in zip(once.gaussian().__dict__.values(), merged.gaussian().__dict__.values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=0)
        pairs.append((once.gaussian(), merged.gaussian()))
    value = frechet_distance(pairs[0][0], pairs[1][0])
    assert frechet_distance(pairs[0][1], pairs[1][1]) == pytest.approx(value, abs=1e-9)
    c1, c2 = (np.cov(x, rowvar=False, ddof=0 if biased else 1) for x in (real, fake))
    cross = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real.sum()
    expected = ((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(c1 + c2) - 2 * cross
    assert value == pytest.approx(expected, abs=1e-7)


def test_the_evaluation_reports_it_for_every_length_and_on_request_for_codecs(monkeypatch):
    monkeypatch.setitem(fvd.NETWORKS, "rfvd_tiny", lambda weights, device: TinyClipFeatures())
    batch, key = clips(6), "rfvd_tiny_9f_64_12fps_6"
    plan = Plan((1, 3), ("rfvd_tiny",), ("x264",), 1, frechet_of_codecs=True)
    from mmtok.metrics.video import anchors

    monkeypatch.setattr(anchors, "SWEEPS", {"x264": anchors.SWEEPS["x264"][:1]})
    run = VideoEvaluation(model(), (9, 64, 64), plan, fps=12.0)
    parts = [
        replace(batch, x=batch.x[part], keys=batch.keys[part], size=batch.size[part], rate=batch.rate[part])
        for part in (slice(0, 4), slice(4, 6))
    ]
    for part in parts:
        run.update(part)
    result = run.finish()
    features, tokenizer = TinyClipFeatures(), model()
    for row in result.lengths:
        real, fake = Moments(features.dim, True), Moments(features.dim, True)
        for part in parts:
            decoded = tokenizer.decode(tokenizer.encode(part, num_tokens=row.length))
            for moments, x in ((real, part.x), (fake, decoded)):
                moments.update(features(((x + 1) * 127.5).round().to(torch.uint8)))
        expected = frechet_distance(real.gaussian(), fake.gaussian())
        assert row.values[key] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert "psnr" in row.values
    assert all(key in row.values for row in result.anchors) and f"{key}_floor" in result.floors
    assert "tiny" in result.protocol["rfvd_tiny_9f_64_12fps"]


def test_two_processes_equal_one(tmp_path):
    worker = TESTS / "distributed" / "video_metrics_worker.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for launcher, out in (([sys.executable], "one"), (torchrun, "two")):
        subprocess.run(
            [*launcher, str(worker), str(Path(__file__).parent), str(tmp_path / out)], check=True, timeout=300, env=env
        )
    one, *two = (json.loads((tmp_path / name).read_text()) for name in ("one.0", "two.0", "two.1"))
    assert one["clips"] == 7 and "rfvd_tiny_9f_64_12fps_7" in one["lengths"][0]["values"]
    for other in two:
        assert other["clips"] == 7 and other["floors"] == pytest.approx(one["floors"], rel=1e-9)
        for a, b in zip(one["lengths"], other["lengths"], strict=True):
            assert b["values"] == pytest.approx(a["values"], rel=1e-9, abs=1e-9)
