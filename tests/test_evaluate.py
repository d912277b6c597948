"""One pass for all lengths equals one encoding per length; totals, counts, codecs and files are what they say."""

import io
import json
import re
from dataclasses import replace

import pytest
import torch
from dct_toy import SIDE, TOKENS, DctTokenizer
from toys import ResidualDepth

from mmtok.bitstream import pack
from mmtok.keep import BlockPrefix, FlatPrefix, GridPrefix, Prefix
from mmtok.metrics.base import KeyCount
from mmtok.metrics.evaluation import Evaluation, Plan
from mmtok.metrics.inception_score import InceptionScore
from mmtok.metrics.lengths import encode_at, length_choices, same_tokens, shorten
from mmtok.metrics.pixels import PSNR, SSIM, to_uint8
from mmtok.types import Batch, Tokens


def pictures(n, seed=0):
    """Smooth random images, float [n, 3, 32, 32]."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 6, 6, generator=g)
    return (torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic") * 0.5).clamp(-1, 1)


def batches(x, sizes, keys=None):
    names = tuple(keys or (f"photo{i}" for i in range(len(x))))
    start = 0
    for size in sizes:
        yield Batch.of(x[start : start + size], names[start : start + size])
        start += size


def run(plan, sizes=(4, 4, 3), tokenizer=None, n=11):
    evaluation = Evaluation(tokenizer or DctTokenizer(), (SIDE, SIDE), plan)
    for batch in batches(pictures(n), sizes):
        evaluation.update(batch)
    return evaluation.finish()


def test_cut_tokens_equal_the_truncated_path():
    tokenizer = DctTokenizer().eval()
    batch = Batch.of(pictures(3))
    full = tokenizer.encode(batch)
    assert length_choices(tokenizer, (SIDE, SIDE)) == [1, 2, 4, 8, 16, 32, 64]
    for length in range(1, TOKENS + 1):
        short, truncated = shorten(full, length), encode_at(tokenizer, batch, length)
        assert same_tokens(short, truncated) and torch.equal(short.bits, truncated.bits)
        assert pack(short[0]) == pack(truncated[0])
    with pytest.raises(ValueError, match="lengths 1 to 64, got 65"):
        shorten(full, 65)
    with pytest.raises(ValueError, match="longer than what was sent"):
        shorten(shorten(full, 8), 9)


def test_residual_depth_is_cut_like_positions():
    tokenizer = ResidualDepth().eval()
    batch = Batch.of(torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1))
    full = tokenizer.encode(batch)
    assert length_choices(tokenizer, (64,)) == [1, 2, 4]
    for depth in (1, 2, 3, 4):
        short = shorten(full, depth)
        assert same_tokens(short, encode_at(tokenizer, batch, depth)) and int(short.num_sent[0]) == 16 * depth


@pytest.mark.parametrize(
    "coding, shapes", [
        (Prefix(1), ((4, 3, 3),)), (FlatPrefix(), ((2, 3), (2, 5))), (GridPrefix(), ((1, 1, 1), (1, 2, 2), (1, 3, 3))),
        (BlockPrefix(), ((1, 3, 6),)),
    ], ids=["depth", "flat", "grids", "blocks"],
)
def test_every_coding_of_lengths_can_be_cut(coding, shapes):
    grids = tuple(torch.randint(1, 9, (2, *shape)) for shape in shapes)
    keep = tuple(torch.ones(2, *[1] * len(shape), dtype=torch.bool) for shape in shapes)
    books = tuple((9,) * shape[0] for shape in shapes)
    full = Tokens(grids, keep, books, torch.ones(2, 1, dtype=torch.int64), coding=coding)
    last = 0
    for length in range(1, max(coding.sizes(shapes)) + 1):
        short = shorten(full, length)
        symbols = coding.symbols(short.keep, shapes)
        assert torch.equal(symbols, torch.full_like(symbols, length - 1))
        assert int(short.num_sent[0]) > last
        assert all((g[~m.expand_as(g)] == 0).all() for g, m in zip(short.grids, short.keep, strict=True))
        last = int(short.num_sent[0])
    assert same_tokens(shorten(full, max(coding.sizes(shapes))), full)


def test_one_pass_equals_separate_measurements():
    result = run(Plan(lengths=(4, 64), metrics=("psnr", "ssim")))
    tokenizer, x = DctTokenizer().eval(), pictures(11)
    for row, length in zip(result.lengths, (4, 64), strict=True):
        tokens = tokenizer.encode(x, num_tokens=length)
        fake, real = to_uint8(tokenizer.decode(tokens)), to_uint8(x)
        assert row.length == length and row.values["tokens"] == length
        assert row.values["psnr"] == pytest.approx(float(PSNR().update(real, fake).mean()), abs=1e-6)
        assert row.values["ssim"] == pytest.approx(float(SSIM().update(real, fake).mean()), abs=1e-6)
        assert row.values["bits_nominal"] == pytest.approx(float(tokens.bits.mean()))
        assert row.values["bpp_nominal"] == pytest.approx(float(tokens.bpp.mean()))
        assert row.values["bytes_file"] == pytest.approx(sum(len(pack(tokens[i])) for i in range(11)) / 11)
    assert result.lengths[1].values["psnr"] > result.lengths[0].values["psnr"] + 3
    assert len(result.usage[0].position_usage) == TOKENS
    assert result.images == 11 and result.skipped == 0 and "no code tables" in result.notes[0]


def test_the_split_into_batches_does_not_matter_and_twice_is_the_same():
    plan = Plan(lengths=(1, 64), metrics=("psnr", "fd_vgg16"), samples=3)
    first, second, again = run(plan), run(plan, sizes=(11,)), run(plan)
    for a, b, c in zip(first.lengths, second.lengths, again.lengths, strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-4) and a.values == c.values
        assert all(re.fullmatch("[a-z0-9_]+", key) for key in a.values)
    assert "fd_vgg16_11" in first.lengths[0].values and "fd_vgg16_11_floor" in first.floors
    assert [s.key for s in first.samples] == [s.key for s in second.samples] and len(first.samples) == 3
    distances = [row.values["fd_vgg16_11"] for row in first.lengths]
    assert distances[-1] < distances[0]


def test_codes_that_depend_on_the_length_are_encoded_per_length():
    class Shifty(DctTokenizer):
        def keep_for(self, z, num_tokens=None, num_quantizers=None):
            keep, coding = super().keep_for(z, num_tokens, num_quantizers)
            self.gain = 0.5 if num_tokens is not None and num_tokens < TOKENS else 1.0
            return keep, coding

        def quantize(self, z, keep):
            return super().quantize(z * self.gain, keep)

    result = run(Plan(lengths=(8, 64), metrics=("psnr",)), tokenizer=Shifty())
    assert any("every length was encoded" in note for note in result.notes)
    tokenizer = Shifty().eval()
    tokens = tokenizer.encode(pictures(11), num_tokens=8)
    expected = PSNR().update(to_uint8(pictures(11)), to_uint8(tokenizer.decode(tokens))).mean()
    assert result.lengths[0].values["psnr"] == pytest.approx(float(expected), abs=1e-6)


def test_codecs_stand_beside_with_the_same_metrics():
    result = run(Plan(lengths=(64,), metrics=("psnr",), codecs=("webp", "jpeg"), samples=2))
    webp = [row for row in result.anchors if row.series == "WebP" and row.scale == 1]
    assert [row.values["bytes_file"] for row in webp] == sorted(row.values["bytes_file"] for row in webp)
    assert webp[-1].values["psnr"] > webp[0].values["psnr"]
    assert set(webp[0].values) == {"bytes_file", "bpp_file", "psnr"}
    sample = result.samples[0]
    assert set(sample.anchors) == {"WebP", "JPEG"} and len(sample.lengths) == 1
    assert sample.anchors["WebP"][0].image.shape == (3, SIDE, SIDE) and sample.anchors["WebP"][0].values["bytes"] > 20


def test_inception_gives_rfid_by_count_and_the_score(monkeypatch):
    from mmtok.metrics import suite

    class Pooled:
        """Stands where the real network would: 12 features and 5 logits of an image."""

        name, dim, logits = "rfid", 12, True

        def __call__(self, images):
            features = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
            return features, features[:, :5] / 50

    monkeypatch.setattr(suite.InceptionFeatures, "load", lambda weights, device: Pooled())
    monkeypatch.setattr(suite, "InceptionScore", lambda: InceptionScore(5))
    rows = run(Plan(lengths=(1, 64), metrics=("rfid",))).lengths
    assert rows[1].values["rfid_11"] < rows[0].values["rfid_11"]
    assert 1 <= rows[1].values["inception_score_1split"] <= 5


def test_a_model_of_fixed_length_has_one_row():
    tokenizer = DctTokenizer()
    tokenizer.tail = None
    result = run(Plan(metrics=("psnr",)), tokenizer=tokenizer)
    assert [row.label for row in result.lengths] == ["all tokens"]
    assert result.lengths[0].values["bits_side"] == 0
    with pytest.raises(ValueError, match="one fixed length"):
        run(Plan(lengths=(4,), metrics=("psnr",)), tokenizer=tokenizer)


def test_missing_or_repeated_images_are_errors():
    expected = KeyCount()
    expected.update(f"photo{i}" for i in range(11))

    def seen(keys, skipped=0):
        evaluation = Evaluation(DctTokenizer(), (SIDE, SIDE), Plan(lengths=(1,), metrics=("psnr",)))
        for batch in batches(pictures(len(keys)), (len(keys),), keys):
            evaluation.update(batch)
        evaluation.skip(skipped)
        return evaluation.finish(expected)

    names = [f"photo{i}" for i in range(11)]
    assert seen(names).images == 11
    assert seen(names[:9], skipped=2).skipped == 2
    with pytest.raises(ValueError, match="9 images measured and 0 skipped, but the index lists 11"):
        seen(names[:9])
    with pytest.raises(ValueError, match="measured twice"):
        seen(names[:10] + names[:1])


def test_memory_does_not_grow_with_the_number_of_images():
    plan = Plan(lengths=(4, 64), metrics=("psnr", "ssim"), codecs=("jpeg",), samples=2)
    evaluation = Evaluation(DctTokenizer(), (SIDE, SIDE), plan)

    def held():
        """Bytes of everything the evaluation holds."""
        stream = io.BytesIO()
        torch.save([evaluation.__dict__ | {"tokenizer": None, "number": None, "suite": None}], stream)
        return stream.tell()

    sizes = []
    for round_ in range(3):
        for batch in batches(pictures(12, round_), (6, 6), [f"{round_}/{i}" for i in range(12)]):
            evaluation.update(batch)
        sizes.append(held())
    assert max(sizes) - min(sizes) < 2000 and len(evaluation.shown) == 2  # names differ in length, nothing else


def test_a_model_that_decodes_nan_is_stopped():
    class Broken(DctTokenizer):
        def decode(self, tokens, *, seed=0):
            return super().decode(tokens) * (float("nan") if int(tokens.num_sent[0]) < 9 else 1.0)

    with pytest.raises(ValueError, match="decodes 4 tokens to NaN or infinity"):
        run(Plan(lengths=(4, 64), metrics=("psnr",)), tokenizer=Broken())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="metrics: expected some of psnr, .*got fid"):
        run(Plan(metrics=("fid",)))
    with pytest.raises(ValueError, match="lengths: this model has 1 to 64, got"):
        run(Plan(lengths=(65,), metrics=("psnr",)))
    evaluation = Evaluation(DctTokenizer(), (SIDE, SIDE), Plan(metrics=("psnr",)))
    with pytest.raises(ValueError, match="expected \\[32, 32\\]"):
        evaluation.update(Batch.of(torch.zeros(1, 3, 16, 16)))
    with pytest.raises(ValueError, match="holds no images"):
        evaluation.finish()


def test_metrics_json_has_no_nan_and_replaces_whole_files(tmp_path):
    result = replace(run(Plan(lengths=(2, 64), metrics=("psnr",))), model="toy")
    data = json.loads(result.write_json(tmp_path / "metrics.json").read_text())
    assert data["model"] == "toy" and data["lengths"][1]["values"]["psnr"] > 20 and data["images"] == 11
    result.lengths[0].values["psnr"] = float("nan")
    with pytest.raises(ValueError):
        result.write_json(tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text()) == data


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    import numpy as np
    from PIL import Image

    from mmtok.data.write import make_shards

    folder = tmp_path_factory.mktemp("photos")
    for i, x in enumerate(pictures(5)):
        picture = Image.fromarray(to_uint8(x).permute(1, 2, 0).numpy())
        picture.resize((50, 40), Image.Resampling.BICUBIC).save(folder / f"photo{i}.png")
    make_shards(str(folder), folder / "shards", progress=False)
    assert np.asarray(Image.open(folder / "photo0.png")).std() > 10
    return folder / "shards"


def test_the_command_writes_everything_and_never_over_it(shards, tmp_path, capsys):
    from mmtok.evaluate import main

    out = tmp_path / "out"
    result = main(
        DctTokenizer(), str(shards), out, lengths=(2, 64), metrics=("psnr",), codecs=("jpeg",), num_workers=0,
        name="toy", command="mmtok eval toy",
    )
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {
        "metrics.json", "plots/rate_psnr.png", "plots/rate_psnr.svg", "report/index.html", "report/metrics.json"
    }
    data = json.loads((out / "metrics.json").read_text())
    assert data["images"] == result.images == 5 and data["model"] == "toy" and data["command"] == "mmtok eval toy"
    assert data["protocol"]["preset"] == "resize_center_bicubic to 32 x 32" and "round" in data["protocol"]["rounding"]
    assert "64 tokens" in capsys.readouterr().out
    with pytest.raises(ValueError, match="metrics.json exists"):
        main(DctTokenizer(), str(shards), out)
    limited = main(DctTokenizer(), str(shards), None, (64,), ("psnr",), (), limit=2, num_workers=0, quiet=True)
    assert limited.images == 2
    with pytest.raises(ValueError, match="preset: expected one of resize_center_bicubic"):
        main(DctTokenizer(), str(shards), None, preset="squash")


def test_unreadable_images_are_counted_and_named(shards, tmp_path):
    import shutil

    from mmtok.evaluate import main

    broken = tmp_path / "shards"
    shutil.copytree(shards, broken)
    (tar,) = broken.glob("*.tar")
    data = bytearray(tar.read_bytes())
    start = data.index(b"\x89PNG")
    data[start : start + 40] = bytes(40)
    tar.write_bytes(data)
    result = main(DctTokenizer(), str(broken), None, (64,), ("psnr",), (), num_workers=0, quiet=True)
    assert (result.images, result.skipped) == (4, 1) and any("could not be read" in note for note in result.notes)


def test_the_script_ends_with_code_2_and_one_line(monkeypatch, capsys, tmp_path):
    from mmtok.evaluate import command_line

    monkeypatch.setattr("sys.argv", ["bpp.py", "--model", str(tmp_path / "absent"), "--data", "x.tar"])
    assert command_line("bits") == 2
    err = capsys.readouterr().err
    assert err.startswith("bpp.py: error: ") and err.count("\n") == 1
