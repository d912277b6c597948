"""The report's parts without a browser: self-contained, escaped, complete, inside its size, stable."""

import json
import re
from dataclasses import replace

import pytest
import torch

from mmtok.metrics.usage import CodebookUsage
from mmtok.report.chart import Curve, Point, line_chart
from mmtok.report.labels import label
from mmtok.report.page import render, write_report
from mmtok.report.pictures import gallery, nearest
from mmtok.report.plots import write_plots
from mmtok.report.result import Picture, Sample
from mmtok.report.table import print_table


def test_the_page_is_one_file_that_asks_for_nothing(result, tmp_path):
    page = write_report(tmp_path / "report", result)
    text = page.read_text("utf-8")
    assert page.name == "index.html" and page.stat().st_size < 5_000_000
    assert json.loads((page.parent / "metrics.json").read_text())["model"] == "dct & toy"
    assert not re.search(r"https?://|<link (?!rel=\"icon\" href=\"data:)|<script src|@import|url\(", text)
    assert "default-src 'none'" in text and "{{" not in text
    assert sorted(p.name for p in page.parent.iterdir()) == ["index.html", "metrics.json"]


def test_names_are_escaped_and_every_number_is_there(result):
    text = render(result)
    assert "dct &amp; toy" in text and "mmtok eval &lt;toy&gt;" in text and "<photo" not in text
    for row in (*result.lengths, *result.anchors):
        assert row.label in text and label("psnr").text(row.values["psnr"]) in text
    assert text.count("<circle") >= len(result.lengths) * 3
    assert render(result) == text  # nothing in the page depends on the clock


def test_pictures_step_down_to_fit_and_the_page_says_so():
    g = torch.Generator().manual_seed(0)
    noise = [torch.randint(0, 256, (3, 64, 64), generator=g, dtype=torch.uint8) for _ in range(4)]
    samples = [Sample(str(i), image, (Picture("8 tokens", image, {"bytes": 20.0}),)) for i, image in enumerate(noise)]
    entries, stored = gallery(samples, 10_000_000)
    assert len(entries) == 4 and stored == "stored without loss"
    lossless = sum(len(e["original"]) for e in entries) * 2
    entries, stored = gallery(samples, lossless // 2)
    assert "to keep this page small" in stored and sum(len(e["original"]) for e in entries) * 2 <= lossless // 2
    entries, stored = gallery(samples, 100)
    assert entries == [] and "0 of 4 samples" in stored


def test_the_codec_file_nearest_in_ratio_is_shown(result):
    sizes = (50.0, 100.0, 400.0)
    pictures = tuple(Picture("", torch.zeros(3, 1, 1, dtype=torch.uint8), {"bytes": s}) for s in sizes)
    assert [nearest(pictures, size) for size in (1, 60, 80, 190, 210, 9000)] == [0, 0, 1, 1, 2, 2]
    entries, _ = gallery(result.samples, 4_000_000)
    for entry, sample in zip(entries, result.samples, strict=True):
        for anchor in entry["anchors"]:
            assert len(anchor["pick"]) == len(sample.lengths) and max(anchor["pick"]) < len(anchor["pictures"])


def test_charts_hold_points_inside_the_frame():
    points = [Point(10, 1, "a<b", 0), Point(1000, 3, "", 1), Point(100, 2, "", 2)]
    svg = line_chart([Curve("x", "mmtok", points)], "bytes", "PSNR", log_x=True)
    circles = [tuple(map(float, c)) for c in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert circles[0][0] < circles[2][0] < circles[1][0] and circles[0][1] > circles[2][1] > circles[1][1]
    assert circles[2][0] * 2 == pytest.approx(circles[0][0] + circles[1][0], abs=0.3)  # logarithmic
    assert all(0 <= x <= 460 and 0 <= y <= 280 for x, y in circles)
    assert "a&lt;b" in svg and 'aria-label="PSNR by bytes"' in svg
    assert "nan" not in line_chart([Curve("", "mmtok", [Point(5, 5)])], "x", "y", log_x=True)  # one point draws


def test_plots_are_written_in_two_formats_and_are_stable(result, tmp_path):
    first = write_plots(tmp_path / "a", result)
    second = write_plots(tmp_path / "b", result)
    assert [p.name for p in first] == ["rate_psnr.png", "rate_psnr.svg", "rate_ssim.png", "rate_ssim.svg"]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_a_single_length_and_no_codecs_still_make_a_page(result):
    small = replace(result, lengths=result.lengths[-1:], anchors=[], samples=[])
    text = render(small)
    assert 'max="0"' in text and "Codecs on the same images" not in text


def test_the_table_prints_every_length(result, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    print_table(result)
    out = capsys.readouterr().out
    assert all(row.label in out for row in (*result.lengths, *result.anchors)) and "PSNR, dB" in out


def test_grids_lie_end_to_end_and_codebooks_share_positions(result):
    def book(grid, codebook, count):
        return CodebookUsage(grid, codebook, 16, 10, 0.5, 0.6, 2.0, 4.0, 1, (0.5,) * count, (2.0,) * count)

    text = render(replace(result, usage=[book(0, 0, 4), book(0, 1, 4), book(1, 0, 8)]))
    chart = text[text.index("Code entropy, bits") :].partition("</svg>")[0]
    xs = {}
    for points, name in re.findall(r'<polyline points="([^"]+)"><title>([^<]+)</title>', chart):
        xs[name] = [float(point.split(",")[0]) for point in points.split()]
    assert xs["grid 0, codebook 0"] == xs["grid 0, codebook 1"] and len(xs["grid 1, codebook 0"]) == 8
    assert min(xs["grid 1, codebook 0"]) > max(xs["grid 0, codebook 1"])
