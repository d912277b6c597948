"""Evaluation of video: frame metrics, flicker, rates against a hand count, codecs, and the page's data."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fvd_toys import clips, model
from PIL import Image

from mmtok.bitstream import pack
from mmtok.metrics.evaluation import Plan
from mmtok.metrics.video import anchors
from mmtok.metrics.video.anchors import VideoSetting, decode_clip, encode_clip, through
from mmtok.metrics.video.evaluation import VideoEvaluation
from mmtok.metrics.video.rate import FlickerPSNR
from mmtok.report.page import write_report
from mmtok.types import Batch


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anchors, "SWEEPS", {name: (sweep[0], sweep[4]) for name, sweep in anchors.SWEEPS.items()})
        run = VideoEvaluation(model(), (9, 64, 64), Plan((1, 2, 3), ("psnr", "ssim"), ("x264", "svtav1"), 2))
        batch = clips()
        run.update(Batch(batch.x[:2], batch.keys[:2], batch.size[:2], batch.rate[:2]))
        run.update(Batch(batch.x[2:], batch.keys[2:], batch.size[2:], batch.rate[2:]))
        found = run.finish()
    found.model, found.data, found.command = "blocks & toy", "shelf", "mmtok eval <toy>"
    return found


def test_rates_and_quality_equal_a_hand_count(result):
    tokenizer, batch = model(), clips()
    real = ((batch.x + 1) * 127.5).round()
    assert [row.label for row in result.lengths] == ["1 token", "2 tokens", "3 tokens"]
    for row in result.lengths:
        tokens = tokenizer.encode(batch, num_tokens=row.length)
        size = sum(len(pack(tokens[i])) for i in range(3)) / 3
        assert row.values["bytes_file"] == pytest.approx(size)
        assert row.values["bpp_file"] == pytest.approx(8 * size / (9 * 64 * 64))
        assert row.values["kbps_file"] == pytest.approx(8 * size / (9 / 12) / 1000)
        bits = 3 * 64 * row.length * 4 + 3 * math.log2(3)  # blocks x positions x depth x log2(16), and the depths
        assert row.values["bits_nominal"] == pytest.approx(bits)
        fake = ((tokenizer.decode(tokens) + 1) * 127.5).round()
        frames = (real - fake).square().mean((1, 3, 4))
        assert row.values["psnr"] == pytest.approx(float((10 * torch.log10(255**2 / frames)).mean()), abs=1e-4)
        pairs = (real.diff(dim=2) - fake.diff(dim=2)).square().mean((1, 3, 4))
        assert row.values["flicker_psnr"] == pytest.approx(float((10 * torch.log10(255**2 / pairs)).mean()), abs=1e-4)
    assert json.loads(json.dumps(result.to_json()))["clips"] == 3


def test_flicker_ignores_a_constant_error():
    real = torch.randint(50, 200, (5, 3, 16, 16), dtype=torch.uint8)
    steady, trembling = real + 20, real + (torch.arange(5) % 2 * 20).to(torch.uint8).view(5, 1, 1, 1)
    assert FlickerPSNR().update(real, steady).tolist() == [100.0] * 4
    assert FlickerPSNR().update(real, trembling).mean() == pytest.approx(10 * math.log10(255**2 / 400), abs=1e-6)


@pytest.mark.parametrize("codec", ["x264", "x265", "svtav1"])
def test_codecs_give_back_the_clip(codec):
    clip = ((clips(1).x[0] + 1) * 127.5).round().to(torch.uint8)
    sizes, errors = [], []
    for crf in (60, 40, 20) if codec == "svtav1" else (48, 36, 20):
        back, size = through(clip, 12.0, VideoSetting(codec, crf))
        sizes.append(size)
        errors.append(float((back.float() - clip.float()).square().mean()))
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True) and errors[-1] < 40
    data = encode_clip(clip, 12.0, VideoSetting(codec, 40, 2))
    assert len(data) < sizes[-1] and b"options:" not in data
    assert decode_clip(data, codec, 64, 64).shape == clip.shape


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="codecs: expected some of x264, x265, svtav1"):
        anchors.settings(("mpeg2",))
    with pytest.raises(ValueError, match="metrics: of video"):
        VideoEvaluation(model(), (9, 64, 64), Plan(metrics=("rfid",)))
    with pytest.raises(ValueError, match="with a rate"):
        VideoEvaluation(model(), (9, 64, 64), Plan(metrics=("psnr",))).update(Batch.of(clips(1).x))


def played(uri, rate):
    """What a stored picture shows, uint8 [3, T, H, W]: equal neighbours are stored once and shown longer."""
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    frames = []
    for number in range(image.n_frames):
        image.seek(number)
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        times, rest = divmod(image.info["duration"], round(1000 / rate))
        assert rest == 0
        frames += [pixels] * times
    return torch.stack(frames, 1)


def test_the_page_holds_clips_that_move_and_strips(result, tmp_path):
    page = write_report(tmp_path, result).read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert len(data["samples"]) == 2 and len(data["steps"]) == 3
    for sample, measured in zip(data["samples"], result.samples, strict=True):
        assert torch.equal(played(sample["original"], 12.0), measured.original)
        for shown, picture in zip(sample["lengths"], measured.lengths, strict=True):
            assert torch.equal(played(shown["src"], 12.0), picture.image)
        for anchor in sample["anchors"]:
            for shown in anchor["pictures"]:
                picture = next(p for p in measured.anchors[anchor["codec"]] if p.label == shown["label"])
                assert torch.equal(played(shown["src"], 12.0), picture.image)
        strip = Image.open(io.BytesIO(base64.b64decode(sample["lengths"][0]["strip"].split(",")[1])))
        assert strip.size == (256, 64)
    assert "x264" in page and "SVT-AV1" in page and "Bits per clip" in page and "PSNR of frame differences" in page


@pytest.mark.chromium
def test_the_page_moves_in_a_browser(result, tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[2] / "report"))
    from chromium import Chromium

    browser = Chromium()
    try:
        browser.shape(1200, 900)
        browser.open(write_report(tmp_path, result).as_uri())
        shown = []
        for step in range(3):
            browser.run(f"(() => {{ const s = document.getElementById('length'); s.value = {step};"
                        " s.dispatchEvent(new Event('input')); })()")  # fmt: skip
            shown.append(browser.run("document.querySelector('.ours img').src"))
        assert len(set(shown)) == 3
        assert browser.run("document.querySelectorAll('.row img.strip').length") == 2 * 4
        wait = "Promise.all(Array.from(document.images, i => i.decode()))"
        browser.run(f"(async () => {{ await {wait}; return true; }})()")
        assert browser.run("Array.from(document.images).every(i => i.alt.length > 5 && i.naturalWidth > 0)")
        bad = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
        assert not [event for event in browser.events if event.get("method") in bad]
    finally:
        browser.close()
