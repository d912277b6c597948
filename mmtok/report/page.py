"""The report: one HTML file that needs nothing else, with a slider over lengths, curves, codebooks and all numbers."""

from __future__ import annotations

import json
import math
from html import escape
from importlib.resources import files
from pathlib import Path

from mmtok.report.audio_result import AudioResult
from mmtok.report.chart import Curve, Point, line_chart
from mmtok.report.labels import label, quality_keys
from mmtok.report.pictures import gallery
from mmtok.report.plots import curves
from mmtok.report.result import EvaluationResult, Row
from mmtok.report.sounds import listening
from mmtok.report.table import columns

PICTURE_BUDGET = 4_000_000  # bytes of data URIs; the whole page stays below 5 MB
SOUND_BUDGET = 6_000_000
MAX_POSITION_CURVES = 8
NEAREST = (
    "Codecs are shown at the setting whose file is nearest in bytes to ours, reduced to a half or a quarter first"
    " where that is nearer."
)
NEAREST_SOUND = "Codecs play at the setting whose file is nearest in bytes to ours."


def write_report(folder: str | Path, result: EvaluationResult) -> Path:
    """Writes `index.html` and `metrics.json` into the folder; returns the page."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    result.write_json(folder / "metrics.json")
    page = folder / "index.html"
    part = page.with_suffix(".part")
    part.write_text(render(result), encoding="utf-8")
    part.replace(page)
    return page


def render(result: EvaluationResult) -> str:
    """The page as text."""
    sound = isinstance(result, AudioResult)
    if isinstance(result, AudioResult):
        samples, stored = listening(result.clips, SOUND_BUDGET)
    else:
        samples, stored = gallery(result.samples, PICTURE_BUDGET)
    first = len(result.lengths) - 1 if len(result.lengths) < 3 else len(result.lengths) // 2
    prices = {"kbps": "kbps_file"} if sound else {"bytes": "bytes_file", "bpp": "bpp_file"}
    steps = [
        {"label": row.label, **{name: row.values[key] for name, key in prices.items()},
         "quality": " · ".join(label(k).sentence(row.values[k]) for k in _per_item(row))}
        for row in result.lengths
    ]
    data = json.dumps({"steps": steps, "start": first, "samples": samples}, allow_nan=False)
    resources = files("mmtok.report")
    parts = {
        "title": escape(f"{result.model}: evaluation"),
        "css": (resources / "page.css").read_text("utf-8"),
        "js": "\n".join(
            (resources / name).read_text("utf-8") for name in ("slider.js", "audio.js" if sound else "page.js")
        ),
        "slider": "Rate" if sound else "Length",
        "noun": result.noun,
        "model": escape(result.model),
        "summary": escape(_summary(result)),
        "last": str(len(steps) - 1),
        "start": str(first),
        "stored": escape(stored),
        "nearest": (NEAREST_SOUND if sound else NEAREST) if result.anchors else "",
        "legend": _legend(result),
        "charts": "".join(_rate_charts(result)),
        "bits": _bits_chart(result),
        "usage": _usage(result),
        "table": _table(result.lengths, [result.original] if isinstance(result, AudioResult) else []),
        "anchors": _anchors(result),
        "floors": _floors(result),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in result.notes) + _failures(result),
        "facts": _facts(result),
        "data": data.replace("<", "\\u003c"),
    }
    page = (resources / "page.html").read_text("utf-8")
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text)
    return page


def _per_item(row: Row) -> list[str]:
    shown = ("psnr", "ssim", "lpips", "distillmos", "utmos", "pesq", "stoi")
    return [key for key in quality_keys(row.values) if key.startswith(shown)]


def _summary(result: EvaluationResult) -> str:
    return f"{result.subject}, held out, of {result.data}; {_duration(result.seconds)}"


def _failures(result: EvaluationResult) -> str:
    """Every utterance a metric has no value for, by name."""
    if not isinstance(result, AudioResult) or not result.failures:
        return ""
    lines = "".join(f"<li>{escape(f'{f.utterance}: {f.metric}: {f.reason}')}</li>" for f in result.failures)
    return f"<li><details><summary>{len(result.failures)} failures by name</summary><ul>{lines}</ul></details></li>"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _legend(result: EvaluationResult) -> str:
    names = {"mmtok": "this model"} | {row.series: row.series for row in result.anchors}
    keys = " ".join(f'<span class="key {_kind(kind)}">{escape(name)}</span>' for kind, name in names.items())
    reduced = any(row.scale > 1 for row in result.anchors)
    return keys + (' <span class="quiet">dashed: reduced to 1/2 or 1/4 before coding</span>' if reduced else "")


def _kind(series: str) -> str:
    """The CSS class of a series: "Codec 2" is .codec2."""
    return series.lower().replace(" ", "")


def _rate_charts(result: EvaluationResult) -> list[str]:
    out = []
    for key in quality_keys(result.lengths[-1].values):
        shown = label(key)
        lines = []
        for name, reduced, rows in curves(result):
            points = []
            for index, row in enumerate(rows):
                if key in row.values:
                    size, value = row.values[result.rate_key], row.values[key]
                    step = index if name == "mmtok" else None
                    points.append(Point(size, value, f"{row.label}: {_price(size, result)}, {shown.text(value)}", step))
            if points:
                lines.append(Curve(name, _kind(name), points, dashed=reduced))
        if isinstance(result, AudioResult) and key.startswith(("distillmos", "utmos", "dnsmos")):
            sizes, value = [p.x for line in lines for p in line.points], result.original.values[key]
            ends = [Point(min(sizes), value), Point(max(sizes), value)]
            lines.append(Curve(f"originals: {shown.text(value)}", "ceiling", ends, dashed=True, dots=False))
        better = f"{shown.better} is better"
        chart = line_chart(lines, result.rate_axis, shown.heading, log_x=True)
        out.append(f"<figure><figcaption><b>{escape(shown.heading)}</b> {better}</figcaption>{chart}</figure>")
    return out


def _price(size: float, result: EvaluationResult) -> str:
    return f"{size:.2f} kbps" if isinstance(result, AudioResult) else f"{size:,.0f} bytes"


def _bits_chart(result: EvaluationResult) -> str:
    if len(result.lengths) < 2:
        return ""
    kinds = {"bits_nominal": ("nominal", 1.0), "bits_entropy": ("entropy", 1.0), "bytes_file": ("file", 8.0)}
    x_key, x_title, title, unit = "tokens", "tokens sent", f"Bits per {result.noun[:-1]}", "bits"
    if isinstance(result, AudioResult):
        kinds = {f"kbps_{name}": (name, 1.0) for name in ("nominal", "entropy", "file")}
        x_key, x_title, title, unit = "tokens_per_second", "tokens per second", "Bitrate", "kbps"
    lines = []
    for key, (name, factor) in kinds.items():
        points = []
        for step, row in enumerate(result.lengths):
            if key in row.values:
                bits = row.values[key] * factor
                points.append(Point(row.values[x_key], bits, f"{row.label}: {bits:,.1f} {unit}", step))
        if points:
            lines.append(Curve(name, f"bits-{name}", points))
    chart = line_chart(lines, x_title, "kbps" if unit == "kbps" else title.lower(), y_from_zero=True)
    legend = " ".join(f'<span class="key bits-{name}">{name}</span>' for name in (line.name for line in lines))
    return f"<figure><figcaption><b>{title}</b> {legend}</figcaption>{chart}</figure>"


def _usage(result: EvaluationResult) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_book(b.grid, b.codebook, result)}</th><td>{b.size:,}</td><td>{b.codes:,}</td>"
        f'<td><span class=bar><i style="width:{100 * b.usage:.1f}%"></i></span>{100 * b.usage:.1f} %</td>'
        f"<td>{100 * b.usage_uniform:.1f} %</td><td>{b.perplexity:,.1f}</td><td>{b.entropy_bits:.2f}</td></tr>"
        for b in result.usage
    )
    head = "".join(f"<th scope=col>{t}</th>" for t in (
        "codebook", "size", "codes counted", "used", "if uniform", "perplexity", "entropy bits"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<div class=scroll>{table}</div>" + _positions(result)


def _positions(result: EvaluationResult) -> str:
    books = [b for b in result.usage if b.position_entropy][:MAX_POSITION_CURVES]
    if not books:
        return ""
    bin_size = max(b.bin_size for b in books)
    most = min(math.log2(max(b.size for b in books)), math.log2(max(1, result.images * bin_size)))
    starts: dict[int, int] = {}  # grids lie end to end, in sending order; codebooks of one grid share its positions
    end = 0
    for book in books:
        if book.grid not in starts:
            starts[book.grid] = end
            end += len(book.position_entropy)
    ceiling = Curve("", "ceiling", [Point(0, most), Point(max(1, end - 1), most)], dashed=True, dots=False)

    def chart(values: str, title: str, factor: float, *extra: Curve) -> str:
        lines = []
        for book in books:
            points = [Point(starts[book.grid] + i, factor * v) for i, v in enumerate(getattr(book, values))]
            lines.append(Curve(_book(book.grid, book.codebook, result), "mmtok", points, dots=False))
        place = "position in sending order" + ("" if bin_size == 1 else f", bins of up to {bin_size}")
        body = line_chart([*extra, *lines], place, title, y_from_zero=True)
        return f"<figure><figcaption><b>{escape(title)}</b> by position</figcaption>{body}</figure>"

    note = (
        f"Dashed: the most that {result.images:,} images can show at one position, {most:.1f} bits."
        + (f" The first {MAX_POSITION_CURVES} codebooks are drawn." if len(result.usage) > MAX_POSITION_CURVES else "")
    )
    return (
        "<div class=charts>" + chart("position_entropy", "Code entropy, bits", 1.0, ceiling)
        + chart("position_usage", "Codebook used, %", 100.0) + f"</div><p class=quiet>{note}</p>"
    )


def _book(grid: int, codebook: int, result: EvaluationResult) -> str:
    grids = len({b.grid for b in result.usage})
    return f"grid {grid}, codebook {codebook}" if grids > 1 else f"codebook {codebook}"


def _table(rows: list[Row], above: list[Row] | tuple[()] = ()) -> str:
    """A row a length, which the slider marks, below rows it does not reach."""
    keys = columns(rows)
    head = "".join(f"<th scope=col>{escape(label(key).heading)}</th>" for key in keys)
    body = "".join(
        f'<tr{mark}><th scope=row>{escape(row.label)}</th>'
        + "".join(f"<td>{label(k).text(row.values[k]) if k in row.values else ''}</td>" for k in keys) + "</tr>"
        for mark, row in [*(("", row) for row in above), *((f' data-step="{i}"', row) for i, row in enumerate(rows))]
    )
    return f"<div class=scroll><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _anchors(result: EvaluationResult) -> str:
    if not result.anchors:
        return ""
    table = _table(result.anchors).replace("data-step", "data-anchor")
    return f"<details><summary>Codecs on the same {result.noun}</summary>{table}</details>"


def _floors(result: EvaluationResult) -> str:
    lines = (
        f"<p class=quiet>{escape(name)} {value:.2f}: distance between two halves of the real images. Values at this"
        " number of images only compare models on the same images.</p>"
        for name, value in result.floors.items()
    )
    return "".join(lines)


def _facts(result: EvaluationResult) -> str:
    command = f"<dt>command</dt><dd><code>{escape(result.command)}</code></dd>" if result.command else ""
    facts = {"duration": _duration(result.seconds), "data": result.data}
    facts |= result.protocol
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return command + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
