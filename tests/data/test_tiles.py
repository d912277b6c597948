"""Tiles cover every scale of a photograph, and shards of them hold what was cut."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtok.data.index import parse_index
from mmtok.data.shards_cli import make
from mmtok.data.tiles import Tiling


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_scales_go_from_coarse_to_the_size_itself() -> None:
    names = [name for name, _ in Tiling(32)(noise(150, 200))]
    assert [name.split("-")[0] for name in names] == ["38"] * 2 + ["75"] * 9 + ["150"] * 30
    assert names[:2] == ["38-0-0", "38-0-1"]


def test_tiles_of_one_scale_reach_every_edge_and_are_the_pixels_there() -> None:
    photo = noise(60, 97)
    tiles = dict(Tiling(32)(photo))
    pixels = np.asarray(photo)
    assert len(tiles) == 6 and all(tile.size == (32, 32) for tile in tiles.values())
    assert np.array_equal(np.asarray(tiles["60-0-0"]), pixels[:32, :32])
    assert np.array_equal(np.asarray(tiles["60-1-2"]), pixels[-32:, -32:])


def test_a_small_image_is_one_tile_as_it_is() -> None:
    ((name, tile),) = Tiling(32)(noise(20, 28))
    assert name == "20-0-0" and tile.size == (28, 20)


def test_flat_tiles_are_left_out_of_finer_scales_only() -> None:
    pixels = np.full((128, 128, 3), 90, np.uint8)
    pixels[:64, :64] = np.asarray(noise(64, 64))
    names = {name for name, _ in Tiling(32, detail=5.0)(Image.fromarray(pixels))}
    assert {name for name in names if name.startswith("32-")} == {"32-0-0"}
    assert {name for name in names if name.startswith("128-")} == {f"128-{r}-{c}" for r in (0, 1) for c in (0, 1)}
    # the average of 2 x 2 noise still has detail
    assert {name for name in names if name.startswith("64-")} == {"64-0-0"}


def test_shards_of_tiles(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    noise(100, 120).save(source / "a.png")
    (source / "broken.jpg").write_bytes(b"no image")
    (report,) = make(str(source), str(tmp_path / "shards"), short_side=64, tile=32)
    assert [key for key, _ in report.bad] == ["broken"]
    text = (tmp_path / "shards" / "index.json").read_bytes()
    (shard,) = parse_index(text, "index.json").values()
    # 64 x 77 in 2 x 3 tiles, and 32 x 38 in one
    names = ["a-32-0-0", *(f"a-64-{row}-{column}" for row in (0, 1) for column in (0, 1, 2))]
    assert sorted(shard.key(row) for row in range(len(shard))) == names
    data = (tmp_path / "shards" / "000000.tar").read_bytes()
    for start, length in shard.members["jpg"]:
        assert Image.open(io.BytesIO(data[start : start + length])).size == (32, 32)


@pytest.mark.parametrize(("tile", "detail"), [(8, 0.0), (64, -1.0)])
def test_bad_tilings_are_refused(tile: int, detail: float) -> None:
    with pytest.raises(ValueError, match="tile"):
        Tiling(tile, detail)
