"""States add: any split of the data, merged, gives the single pass; nothing grows with the number of images."""

import re

import pytest
import torch

from mmtok.metrics.base import KeyCount, Metric, all_reduce
from mmtok.metrics.frechet import Moments
from mmtok.metrics.inception_score import InceptionScore
from mmtok.metrics.pixels import PSNR, SSIM
from mmtok.metrics.rate import Rate
from mmtok.metrics.usage import Usage


def all_metrics(tokens):
    g = torch.Generator().manual_seed(0)
    real, fake = torch.randint(0, 256, (2, 11, 3, 16, 16), generator=g, dtype=torch.uint8)
    sent = tokens(11)
    features, logits = torch.randn(11, 12, generator=g), torch.randn(11, 7, generator=g)
    keys = [f"k{i}" for i in range(11)]
    return [
        (PSNR, lambda m, s: m.update(real[s], fake[s])),
        (SSIM, lambda m, s: m.update(real[s], fake[s])),
        (lambda: Moments(12), lambda m, s: m.update(features[s])),
        (lambda: InceptionScore(7), lambda m, s: m.update(logits[s])),
        (Rate, lambda m, s: [m.update(sent[i]) for i in range(11)[s]]),
        (lambda: Usage.like(sent, by_position=True), lambda m, s: [m.update(sent[i]) for i in range(11)[s]]),
        (KeyCount, lambda m, s: m.update(keys[s])),
    ]


@pytest.mark.parametrize("index", range(7))
def test_merged_states_equal_a_single_pass(tokens, index):
    make, update = all_metrics(tokens)[index]
    single, left, right = make(), make(), make()
    update(single, slice(0, 11))
    update(left, slice(0, 3))
    update(right, slice(3, 11))
    left.merge(right)
    values = single.compute()
    assert left.compute() == pytest.approx(values, rel=1e-12)
    assert all(re.fullmatch("[a-z0-9_]+", key) for key in values)


def test_state_sizes_do_not_depend_on_the_number_of_images(tokens):
    def elements(metric):
        return sum(state.numel() for state in metric.states.values())

    for make, update in all_metrics(tokens):
        metric = make()
        before = elements(metric)
        for _ in range(5):
            update(metric, slice(0, 11))
        assert elements(metric) == before
        assert vars(metric).keys() == vars(make()).keys()


def test_reducing_twice_or_updating_afterwards_is_an_error():
    metric = KeyCount()
    metric.update(["a"])
    all_reduce([metric])
    assert metric.compute()["images"] == 1
    with pytest.raises(RuntimeError, match="twice"):
        all_reduce([metric])
    with pytest.raises(RuntimeError, match="after all_reduce"):
        metric.update(["b"])


def test_states_are_exact_types():
    with pytest.raises(TypeError, match="float64 or int64"):
        Metric(total=torch.zeros(1))
