"""Rate-distortion curves as PNG and SVG files, for papers and issues."""

from __future__ import annotations

from pathlib import Path

from mmtok.report.labels import label, quality_keys
from mmtok.report.result import EvaluationResult, Row

COLOURS = {
    "mmtok": "#0b62d6", "JPEG": "#b45309", "WebP": "#0f766e", "AVIF": "#8b3fd1",
    "Opus": "#b45309", "Codec 2": "#0f766e", "x264": "#b45309", "x265": "#0f766e", "SVT-AV1": "#8b3fd1",
}


def write_plots(folder: Path, result: EvaluationResult) -> list[Path]:
    """`rate_<metric>.png` and `.svg` per quality metric; returns the files. Same result, same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with matplotlib.rc_context({"svg.hashsalt": "mmtok", "font.size": 9}):
        for key in quality_keys(result.lengths[-1].values):
            figure = Figure(figsize=(5, 3.6), layout="constrained")
            axes = figure.add_subplot()
            named: set[str] = set()  # the reduced curves of a codec share one entry of the legend
            for name, scaled, rows in curves(result):
                text = f"{name}, reduced" if scaled else name
                points = sorted((row.values[result.rate_key], row.values[key]) for row in rows if key in row.values)
                if points:
                    axes.plot(
                        *zip(*points, strict=True), marker="o", markersize=3, linestyle="--" if scaled else "-",
                        linewidth=0.8 if scaled else 1.4, color=COLOURS.get(name),
                        label=None if text in named else text,
                    )
                    named.add(text)
            axes.set(xscale="log", xlabel=result.rate_axis, ylabel=_axis(key))
            axes.set_title(f"{result.model}, {result.subject}", fontsize=9)
            axes.grid(alpha=0.25, which="both", linewidth=0.5)
            axes.legend(frameon=False, fontsize=8)
            for kind in ("png", "svg"):
                path = folder / f"rate_{key}.{kind}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
                files.append(path)
    return files


def curves(result: EvaluationResult) -> list[tuple[str, bool, list[Row]]]:
    """(series, whether the image was reduced before coding, rows by bytes) of the model and the anchors."""
    out: list[tuple[str, bool, list[Row]]] = [("mmtok", False, result.lengths)]
    for name in dict.fromkeys(row.series for row in result.anchors):
        rows = sorted((row for row in result.anchors if row.series == name), key=lambda row: row.values["bytes_file"])
        for scale in sorted({row.scale for row in rows}):
            out.append((name, scale > 1, [row for row in rows if row.scale == scale]))
    return out


def _axis(key: str) -> str:
    known = label(key)
    return f"{known.heading} ({known.better} is better)"
