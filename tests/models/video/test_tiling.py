"""Spatial tiles: one is the whole, several cover everything once, and overlap makes borders better."""

import pytest
import torch
from video_models import MODELS, video

from mmtok.models.video.tiling import _ramp, _spans, decode_tiled, encode_tiled


@torch.no_grad()
def test_one_tile_is_the_whole():
    model = MODELS["vidtok_488"]()
    x = video(5, 20, 41)
    tokens, report = encode_tiled(model, x)
    assert torch.equal(tokens.codes, model.encode(x).codes) and report.exact and report.repeated == 0
    recon, report = decode_tiled(model, tokens)
    torch.testing.assert_close(recon, model.decode(tokens), atol=1e-6, rtol=0)
    assert report.tiles == (1, 1)


@pytest.mark.parametrize("count,tile,overlap", [(10, 4, 2), (9, 4, 0), (5, 4, 3), (4, 4, 1), (3, 8, 2), (31, 8, 3)])
def test_tiles_cover_everything_once(count, tile, overlap):
    spans = _spans(count, tile, overlap)
    kept = [i for (first, end), (a, b) in spans for i in range(a, b) if first <= i < end]
    assert kept == list(range(count))
    weights = torch.zeros(count * 2, dtype=torch.float64)
    for (first, end), _ in spans:
        assert end - first == min(tile, count)
        weights[first * 2 : end * 2] += _ramp(first, end, spans, 2)
    torch.testing.assert_close(weights, torch.ones_like(weights))


@torch.no_grad()
def test_overlap_brings_tiles_closer_to_the_whole():
    model = MODELS["vidtok_488"]()
    x = video(5, 70, 96)
    tokens = model.encode(x)
    whole, errors = model.decode(tokens), []
    for overlap in (0, 16, 32):
        tiled, report = decode_tiled(model, tokens, (48, 48), overlap)
        assert tiled.shape == x.shape and not report.exact
        errors.append(float((tiled - whole).square().mean()))
        coded, _ = encode_tiled(model, x, (48, 48), overlap)
        assert coded.codes.shape == tokens.codes.shape
    assert errors[2] < errors[1] < errors[0]
    assert report.tiles == (3, 4) and str(report) == "3 x 4 tiles of 48 x 48 px, overlap 32 px (+300 % work)"


def test_sizes_that_do_not_fit_are_named():
    model = MODELS["cosmos_888"]()
    for tile, overlap in (((30, 32), 8), ((32, 32), 12), ((32, 32), 32)):
        with pytest.raises(ValueError, match="multiples of 8 px"):
            encode_tiled(model, video(1, 64, 64), tile, overlap)
