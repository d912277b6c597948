"""One small evaluation with codecs, written as a report."""

from dataclasses import replace

import pytest
import torch
from dct_toy import SIDE, DctTokenizer

from mmtok.metrics.evaluation import Evaluation, Plan
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
