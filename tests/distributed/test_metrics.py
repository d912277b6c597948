"""Two processes under torchrun report exactly what one process does, on an odd number of images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtok.data.write import make_shards

TESTS = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("metrics_worker.py")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(7):
        noise = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((48 + i, 40), Image.Resampling.BICUBIC).save(folder / f"photo{i}.png")
    make_shards(str(folder), folder / "shards", samples_per_shard=3, progress=False)
    return folder / "shards"


def evaluate(launcher, shards, out):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, str(WORKER), str(TESTS), str(shards), str(out)], check=True, timeout=300, env=env)


def test_two_processes_equal_one(shards, tmp_path):
    evaluate([sys.executable], shards, tmp_path / "one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    evaluate(torchrun, shards, tmp_path / "two")
    one, *two = (json.loads((tmp_path / name).read_text()) for name in ("one.0", "two.0", "two.1"))
    assert one["images"] == 7 and "fd_vgg16_7" in one["lengths"][0]["values"]
    for other in two:  # every process holds the global numbers
        assert other["images"] == 7 and other["pictures"] == one["pictures"] and len(one["pictures"]) == 3
        for a, b in zip(one["lengths"] + one["anchors"], other["lengths"] + other["anchors"], strict=True):
            assert a["label"] == b["label"] and b["values"] == pytest.approx(a["values"], rel=1e-9, abs=1e-9)
        assert other["floors"] == pytest.approx(one["floors"], rel=1e-9)
        assert other["usage"][0]["codes"] == one["usage"][0]["codes"] == 7 * 64
        assert other["usage"][0]["position_entropy"] == pytest.approx(one["usage"][0]["position_entropy"])
