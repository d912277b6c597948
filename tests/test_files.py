"""Folders of images to token files and back: every file lands where it should, or is named."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mmtok import load, load_tokens
from mmtok.data.decode import EXTENSIONS
from mmtok.files import decode_files, encode_files, read_image, write_image
from mmtok.files.images import ENDINGS as IMAGES
from mmtok.files.plan import TOKENS, plan_files


@pytest.fixture(scope="module")
def model(small_model):
    return load(small_model)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_endings_are_those_the_decoder_knows() -> None:
    assert sorted(IMAGES) == sorted(f".{ending}" for ending in EXTENSIONS)


def test_a_folder_keeps_its_shape_and_every_size_comes_back(model, photos, tmp_path, capsys) -> None:
    assert encode_files(model, [photos], tmp_path / "codes", num_tokens=3) == 0
    assert tree(tmp_path / "codes") == {"a.mmt", "trip/b.mmt", "trip/day1/c.mmt"}
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and "100x33" in "\n".join(out)
    total = sum(path.stat().st_size for path in (tmp_path / "codes").rglob("*.mmt"))
    assert out[-1].startswith(f"3 images, {total} bytes, {8 * total / (64 * 64 + 33 * 100 + 1):.4f} bpp")

    assert decode_files(model, [tmp_path / "codes"], tmp_path / "back") == 0
    assert tree(tmp_path / "back") == {"a.png", "trip/b.png", "trip/day1/c.png"}
    for name, size in (("a", (64, 64)), ("trip/b", (100, 33)), ("trip/day1/c", (1, 1))):
        with Image.open(tmp_path / "back" / f"{name}.png") as image:
            assert image.size == size


def test_files_hold_what_the_api_makes(model, photos, tmp_path) -> None:
    encode_files(model, [photos / "a.png"], tmp_path / "a.mmt", num_tokens=7)
    x = read_image(photos / "a.png")
    assert x.shape == (1, 3, 64, 64) and x.dtype == torch.float32 and x.abs().max() <= 1
    tokens, direct = load_tokens(tmp_path / "a.mmt", model), model.encode(x, num_tokens=7)
    assert all(torch.equal(a, b) for a, b in zip(tokens.grids, direct.grids, strict=True))
    decode_files(model, [tmp_path / "a.mmt"], tmp_path / "a.png")
    torch.testing.assert_close(read_image(tmp_path / "a.png"), model.decode(direct), atol=1 / 255 + 1e-6, rtol=0)


def test_what_is_no_image_is_named_and_the_rest_is_done(model, photos, tmp_path, capsys) -> None:
    (photos / "fake.jpg").write_text("a text")
    (photos / "empty.png").touch()
    assert encode_files(model, [photos], tmp_path / "codes") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith(f"mmtok encode: skipped {photos / 'empty.png'}: empty")
    assert errors[1].startswith(f"mmtok encode: skipped {photos / 'fake.jpg'}: unsupported")
    assert tree(tmp_path / "codes") == {"a.mmt", "trip/b.mmt", "trip/day1/c.mmt"}


def test_a_file_that_may_not_be_read_is_skipped_with_its_reason(model, photos, tmp_path, monkeypatch, capsys) -> None:
    real = Path.read_bytes

    def guarded(path):
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    assert encode_files(model, [photos], tmp_path / "codes") == 1
    assert capsys.readouterr().err == f"mmtok encode: skipped {photos / 'a.png'}: Permission denied\n"


def test_damaged_and_foreign_token_files_are_named_and_the_rest_is_done(model, photos, tmp_path, capsys) -> None:
    codes = tmp_path / "codes"
    encode_files(model, [photos], codes)
    data = (codes / "a.mmt").read_bytes()
    (codes / "cut.mmt").write_bytes(data[:-2])
    (codes / "other.mmt").write_bytes(b"MMT\x10")
    capsys.readouterr()
    assert decode_files(model, [codes], tmp_path / "back") == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in errors] == [f"skipped {codes / name}.mmt" for name in ("cut", "other")]
    assert "checksum" in errors[0] and len(tree(tmp_path / "back")) == 3


def test_nothing_is_written_when_one_output_exists(model, photos, tmp_path) -> None:
    codes = tmp_path / "codes"
    (codes / "trip" / "day1").mkdir(parents=True)
    (codes / "trip" / "day1" / "c.mmt").write_text("precious")
    with pytest.raises(ValueError, match=r"c.mmt exists: give another --out, or --overwrite"):
        encode_files(model, [photos], codes)
    assert tree(codes) == {"trip/day1/c.mmt"} and (codes / "trip/day1/c.mmt").read_text() == "precious"
    assert encode_files(model, [photos], codes, overwrite=True) == 0
    assert len(tree(codes)) == 3 and (codes / "trip/day1/c.mmt").read_bytes()[:3] == b"MMT"


def test_targets_are_planned_from_the_paths(photos, tmp_path) -> None:
    def plan(inputs, out):
        return [(str(s.relative_to(photos)), str(t.relative_to(tmp_path)))
                for s, t in plan_files(inputs, out, IMAGES, TOKENS, False)]  # fmt: skip

    a, b = photos / "a.png", photos / "trip" / "b.jpg"
    assert plan([a], tmp_path / "x.mmt") == [("a.png", "x.mmt")]
    assert plan([a], tmp_path / "folder") == [("a.png", "folder/a.mmt")]
    (tmp_path / "made.v2").mkdir()
    assert plan([a], tmp_path / "made.v2") == [("a.png", "made.v2/a.mmt")]
    assert plan([a, b, a], tmp_path / "x") == [("a.png", "x/a.mmt"), ("trip/b.jpg", "x/b.mmt")]
    # a file named by itself is tried whatever it is called
    assert plan([photos / "trip" / "notes.txt"], tmp_path / "x") == [("trip/notes.txt", "x/notes.mmt")]


def test_plans_that_cannot_be_are_refused(photos, tmp_path) -> None:
    def refused(match, inputs, out):
        with pytest.raises(ValueError, match=match):
            plan_files(inputs, out, IMAGES, TOKENS, False)

    a = photos / "a.png"
    refused("no.png does not exist", [photos / "no.png"], tmp_path / "x")
    refused(r"name a file ending in .mmt", [a], tmp_path / "x.png")
    refused("is a file: name a folder", [photos, a], a)
    refused("is a file: name a folder", [a], LICENSE)
    (tmp_path / "empty").mkdir()
    refused("empty: no file ends in .jpg", [tmp_path / "empty"], tmp_path / "x")
    (tmp_path / "x" / "a.mmt").mkdir(parents=True)
    refused("a.mmt is a folder", [photos], tmp_path / "x")
    (photos / "a.jpg").write_bytes(a.read_bytes())
    refused("would both become .*a.mmt: rename one", [photos], tmp_path / "y")


LICENSE = Path(__file__).parents[1] / "LICENSE"


def test_a_failed_write_leaves_nothing_behind(tmp_path) -> None:
    with pytest.raises(OSError):
        write_image(tmp_path / "none" / "x.png", torch.zeros(3, 4, 4))
    with pytest.raises(ValueError):
        write_image(tmp_path / "x.notaformat", torch.zeros(3, 4, 4))
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tiff"])
def test_images_are_written_in_the_format_of_their_ending(tmp_path, ending) -> None:
    x = torch.linspace(-1, 1, 64).expand(3, 32, 64)
    write_image(tmp_path / f"x.{ending}", x)
    torch.testing.assert_close(read_image(tmp_path / f"x.{ending}")[0], x, atol=6 / 255, rtol=0)
