"""The first losses of the toy run (tail drop, VQ, discriminator, cosine schedule) stay what they were."""

import csv

import pytest
from training_toys import config, write_config

from mmtok.training.cli import main

TOTAL = [0.51256448, 0.51630378, 0.60144329, 0.59131795, 0.52979708]


def test_losses_are_those_of_the_first_release(tmp_path, shards):
    """CPU, float32; another machine or release of torch may differ in the last digits, another computation in all."""
    main(["fit", "-c", write_config(tmp_path / "c.yaml", config(shards, runs=str(tmp_path), trainer__max_steps=5))])
    rows = [row for row in csv.DictReader((tmp_path / "c/metrics.csv").read_text().splitlines()) if row["loss/total"]]
    assert [float(row["loss/total"]) for row in rows] == pytest.approx(TOTAL, rel=1e-4)
