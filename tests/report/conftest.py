"""Two small evaluations with codecs, to be written as reports, and a browser to look at them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from chromium import Chromium
from codec_toy import RATE, codec
from dct_toy import SIDE, DctTokenizer

from mmtok.metrics.audio.evaluation import AudioEvaluation, AudioPlan
from mmtok.metrics.evaluation import Evaluation, Plan
from mmtok.report.page import write_report
from mmtok.types import Batch


@pytest.fixture(scope="session")
def result():
    g = torch.Generator().manual_seed(0)
    coarse = torch.randn(6, 3, 7, 7, generator=g)
    x = (torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic") * 0.5).clamp(-1, 1)
    plan = Plan(lengths=(1, 4, 16, 64), metrics=("psnr", "ssim"), codecs=("jpeg", "webp"), samples=3)
    run = Evaluation(DctTokenizer(), (SIDE, SIDE), plan)
    run.update(Batch.of(x, tuple(f"shelf/<photo {i}>" for i in range(6))))
    return replace(run.finish(), model="dct & toy", data="shelf", command="mmtok eval <toy>", versions={"mmtok": "1"})


@pytest.fixture(scope="session")
def sounds():
    """A small evaluation of a toy codec beside Codec 2 and Opus, with names that must be escaped and a failure."""
    t = torch.arange(24000) / RATE
    waves = {}
    for i, hertz in enumerate((120, 190, 260)):
        tone = sum(torch.sin(2 * torch.pi * hertz * k * t + k) / k for k in range(1, 12))
        waves[f"shelf/<voice {i}>"] = 0.08 * tone * (1 + torch.sin(2 * torch.pi * 4 * t))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmtok.metrics.audio.anchors.SWEEPS", {"opus": (6000, 16000), "codec2": (700, 3200)})
        run = AudioEvaluation(codec(waves), AudioPlan((1, 2, 4), ("distillmos", "stoi", "mel"), ("opus", "codec2"), 2))
    for key, wave in waves.items():
        run.update(key, wave[None])
    run.skip("shelf/<text>", "unsupported: no sound")
    named = {"model": "blocks & toy", "data": "shelf", "command": "mmtok eval <toy>", "versions": {"mmtok": "1"}}
    return replace(run.finish(), **named)


@pytest.fixture(scope="session")
def browser():
    chromium = Chromium()
    yield chromium
    chromium.close()


@pytest.fixture
def open_report(browser, tmp_path) -> Callable[..., str]:
    """Writes the report of a result and opens it; returns its address."""

    def opened(result) -> str:
        browser.events.clear()
        browser.shape(1200, 900)
        address = write_report(tmp_path, result).as_uri()
        browser.open(address)
        return address

    return opened
