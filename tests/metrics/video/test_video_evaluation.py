"""Evaluation of video: frame metrics, flicker, rates against a hand count, codecs, and the page's data."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmtok.bitstream import pack
from mmtok.keep import BlockDepth
from mmtok.metrics.evaluation import Plan
from mmtok.metrics.video import anchors
from mmtok.metrics.video.anchors import VideoSetting, decode_clip, encode_clip, through
from mmtok.metrics.video.evaluation import VideoEvaluation
from mmtok.metrics.video.rate import FlickerPSNR
from mmtok.models.video.conv import ConvVideoTokenizer
from mmtok.nn.conv_video import ConvDecoder3d, ConvEncoder3d
from mmtok.nn.video_parts import CosmosParts
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.vq import VQ
from mmtok.report.page import write_report
from mmtok.taildrop import UniformTail
from mmtok.types import Batch


def model():
    torch.manual_seed(0)
    network = {"parts": CosmosParts(4, 2), "z_channels": 4, "channels": 8, "channel_mult": (1, 1), "num_res_blocks": 1,
               "strides": [(1, 2)]}  # fmt: skip
    quantizer = Residual([VQ(4, 16) for _ in range(3)])
    tail = UniformTail(BlockDepth())
    return ConvVideoTokenizer(
        ConvEncoder3d(**network), quantizer, ConvDecoder3d(**network), (9, 64, 64), 12.0, tail=tail
    ).eval()


def clips(count=3):
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 3, 6, 6, generator=g) * 2 - 1
    x = torch.nn.functional.interpolate(coarse, (9, 64, 64), mode="trilinear")
    batch = Batch.of(x, tuple(f"shelf/<clip {i}>" for i in range(count)))
    return replace(batch, rate=torch.full((count,), 12.0, dtype=torch.float64))


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


def test_the_page_holds_clips_that_move_and_strips(result, tmp_path):
    page = write_report(tmp_path, result).read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert len(data["samples"]) == 2 and len(data["steps"]) == 3
    for sample in data["samples"]:
        pictures = [sample["original"], *(p["src"] for p in sample["lengths"])]
        pictures += [p["src"] for anchor in sample["anchors"] for p in anchor["pictures"]]
        for uri in pictures:
            image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
            # equal neighbours are stored once and shown longer
            assert 1 < image.n_frames <= 9 and image.size == (64, 64)
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
