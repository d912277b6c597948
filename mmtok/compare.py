"""Several tokenizers on the same data by the same protocol: one table, curves, and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmtok.console import Parser, one_line
from mmtok.evaluate import PRESETS, main
from mmtok.hub import load
from mmtok.report.labels import RATE_KEYS, label, quality_keys
from mmtok.report.plots import COLOURS
from mmtok.report.result import EvaluationResult, Row
from mmtok.tokenizer import Tokenizer

FORMAT_VERSION = 1
TABLE = ("tokens", "tokens_per_second", "bpp_nominal", "kbps_nominal", "bytes_file", "bpp_file", "kbps_file")


@dataclass(frozen=True)
class Contender:
    """One tokenizer: its name, million parameters, id of its weights, and what was measured at every length."""

    name: str
    parameters: float
    tokenizer_id: str
    result: EvaluationResult


@dataclass(frozen=True)
class Comparison:
    """Results that share data, items, protocol and versions (which is checked), and the codecs measured beside."""

    contenders: list[Contender]
    anchors: list[Row]

    @property
    def first(self) -> EvaluationResult:
        """Any result, for what all share."""
        return self.contenders[0].result

    @property
    def keys(self) -> list[str]:
        """Columns: rates, then qualities, those that some row has."""
        rows = [row for c in self.contenders for row in c.result.lengths]
        found = {key for row in rows for key in row.values}
        qualities = [key for row in rows for key in quality_keys(row.values)]
        return [key for key in dict.fromkeys([*TABLE, *qualities]) if key in found]

    def rows(self) -> list[tuple[str, Row]]:
        """(name, row): every tokenizer at every length, in the order given; then the codecs."""
        return [(c.name, row) for c in self.contenders for row in c.result.lengths] + [
            (row.series, row) for row in self.anchors
        ]

    def markdown(self) -> str:
        """The table, with the protocol under it."""
        heads = ["model", "sent", *(label(key).heading for key in self.keys)]
        lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---', '---', *['---:'] * len(self.keys)])} |"]
        for name, row in self.rows():
            cells = [label(key).text(row.values[key]) if key in row.values else "" for key in self.keys]
            lines.append(f"| {' | '.join([name, row.label, *cells])} |")
        protocol = [f"- {name}: {text}" for name, text in self.first.protocol.items()]
        about = [f"{self.first.subject}, {self.first.data}; the same items and protocol for all rows.", "", *protocol]
        return "\n".join([*lines, "", *about, ""])

    def to_json(self) -> dict[str, object]:
        """Plain data for compare.json."""
        first = self.first
        return {
            "format_version": FORMAT_VERSION, "data": first.data, "items": first.images, "skipped": first.skipped,
            "protocol": first.protocol, "versions": first.versions,
            "models": [
                {
                    "name": c.name, "parameters_millions": c.parameters, "tokenizer_id": c.tokenizer_id,
                    "lengths": [asdict(row) for row in c.result.lengths], "notes": c.result.notes,
                }
                for c in self.contenders
            ],
            "anchors": [asdict(row) for row in self.anchors],
        }  # fmt: skip


def compare(
    models: Sequence[str | Path | Tokenizer],
    data: str | list[str],
    out: str | Path | None = None,
    names: Sequence[str] = (),
    lengths: tuple[int, ...] = (),
    metrics: tuple[str, ...] | None = None,
    codecs: tuple[str, ...] | None = (),
    batch_size: int = 32,
    image_size: int | None = None,
    preset: str = PRESETS[0],
    rounding: str = "round",
    limit: int | None = None,
    device: str = "cpu",
    weights: str | Path | None = None,
    num_workers: int = 2,
    overwrite: bool = False,
    quiet: bool = False,
) -> Comparison:
    """Measures every model on the same items in the same way; see `mmtok.evaluate.main` for what is not named here.

    models   names for `mmtok.load`, folders, or tokenizers, all of one modality
    names    what the table calls them; () takes the models' own names
    lengths  the same for all; () lets every model choose powers of two and its full length
    codecs   measured beside them, once; None takes all
    out      new folder for compare.json, compare.md and plots/
    ValueError when the models cannot be measured alike: other modalities, other image sizes without `image_size`,
    other sample rates, or a result under another protocol.
    """
    folder = None if out is None else Path(out)
    if folder is not None and (folder / "compare.json").exists() and not overwrite:
        raise ValueError(f"out: {folder / 'compare.json'} exists; choose another folder or pass overwrite")
    if not models:
        raise ValueError("models: give at least one")
    called = list(names) or [m if isinstance(m, str) else getattr(m, "name", type(m).__name__) for m in models]
    if len(called) != len(models) or len(set(called)) != len(called):
        raise ValueError(f"names: {len(models)} models need as many different names, got {', '.join(called)}")
    tokenizers = [load(m) if isinstance(m, str | Path) else m for m in models]
    _check_alike(called, tokenizers, image_size)
    found: list[Contender] = []
    for name, tokenizer in zip(called, tokenizers, strict=True):
        result = main(
            tokenizer, data, None, lengths, metrics, () if found else codecs, batch_size, image_size, preset, rounding,
            limit, samples=0, device=device, weights=weights, num_workers=num_workers, name=name, quiet=True,
        )
        millions = sum(p.numel() for p in tokenizer.parameters()) / 1e6
        found.append(Contender(name, millions, tokenizer.tokenizer_id, result))
    comparison = Comparison(found, list(found[0].result.anchors))
    _check_protocol(found)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_plots(folder / "plots", comparison)
        (folder / "compare.md").write_text(comparison.markdown())
        (folder / "compare.json").write_text(json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n")
    if not quiet:
        print(comparison.markdown())
    return comparison


def write_plots(folder: Path, comparison: Comparison) -> list[Path]:
    """`rate_<metric>.png` and `.svg`: quality over rate, one curve a model, codecs dashed."""
    import matplotlib
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    files, first = [], comparison.first
    series: dict[str, list[Row]] = {}
    for name, row in comparison.rows():
        series.setdefault(name, []).append(row)
    coded = {row.series for row in comparison.anchors}
    with matplotlib.rc_context({"svg.hashsalt": "mmtok", "font.size": 9}):
        for key in [key for key in comparison.keys if key not in RATE_KEYS and key not in TABLE]:
            figure = Figure(figsize=(5.5, 4), layout="constrained")
            axes = figure.add_subplot()
            for name, rows in series.items():
                points = sorted((row.values[first.rate_key], row.values[key]) for row in rows if key in row.values)
                if points:
                    axes.plot(
                        *zip(*points, strict=True), marker="o", markersize=3, label=name, linewidth=1.2,
                        linestyle="--" if name in coded else "-", color=COLOURS.get(name) if name in coded else None,
                    )
            known = label(key)
            axes.set(xscale="log", xlabel=first.rate_axis, ylabel=f"{known.heading} ({known.better} is better)")
            axes.set_title(first.subject, fontsize=9)
            axes.grid(alpha=0.25, which="both", linewidth=0.5)
            axes.legend(frameon=False, fontsize=8)
            for kind in ("png", "svg"):
                files.append(folder / f"rate_{key}.{kind}")
                figure.savefig(files[-1], dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return files


def _check_alike(names: Sequence[str], tokenizers: Sequence[Tokenizer], image_size: int | None) -> None:
    """ValueError, before anything is measured, when the models cannot see the same media."""
    for name, tokenizer in zip(names[1:], tokenizers[1:], strict=True):
        first = tokenizers[0]
        if tokenizer.modality != first.modality:
            kinds = f"{names[0]} codes {first.modality}, {name} {tokenizer.modality}"
            raise ValueError(f"models: {kinds}: compare them apart")
        if tokenizer.size == first.size:
            continue
        if tokenizer.modality == "audio":
            raise ValueError(
                f"models: {names[0]} works at {first.size[0]} Hz, {name} at {tokenizer.size[0]} Hz: their originals"
                " differ, so compare them apart"
            )
        if image_size is None:
            sizes = f"{names[0]} is for {first.size}, {name} for {tokenizer.size}"
            raise ValueError(f"models: {sizes}: give one --size to all")


def _check_protocol(found: Sequence[Contender]) -> None:
    """ValueError unless all results count the same items under the same protocol."""
    first = found[0].result
    for contender in found[1:]:
        other = contender.result
        if (other.images, other.skipped) != (first.images, first.skipped):
            raise ValueError(f"compare: {contender.name} was measured on {other.images} items, not {first.images}")
        for key, text in other.protocol.items():
            # the first model alone is measured beside codecs
            wanted = first.protocol.get(key)
            if key != "codecs" and wanted != text:
                raise ValueError(f"compare: {contender.name} was measured with {key}: {text}, not {wanted}")


def command_line(description: str, args: list[str] | None = None, prog: str | None = None) -> int:
    """`compare` with arguments from the command line; returns the exit code (2 for a user's mistake)."""
    parser = Parser(prog, description=description)
    parser.add_argument("models", nargs="+", help="catalogue names, folders, or hf:owner/name, all of one modality")
    parser.add_argument("--data", required=True, nargs="+", help="shards, their folder, samples:image or samples:audio")
    parser.add_argument("--out", type=Path, help="folder for compare.json, compare.md and plots/")
    parser.add_argument("--names", nargs="+", default=(), help="what the table calls the models")
    parser.add_argument("--lengths", type=int, nargs="+", default=(), help="default: powers of two and the full length")
    parser.add_argument("--metrics", nargs="+", help="as in mmtok eval")
    parser.add_argument("--codecs", nargs="*", default=(), help="measured beside the models, e.g. jpeg webp avif")
    parser.add_argument("--size", type=int, help="side of all images in pixels (default: the models', if they agree)")
    parser.add_argument("--preset", default=PRESETS[0], help="resize and crop: " + ", ".join(PRESETS))
    parser.add_argument("--rounding", default="round", help="how floats become 8 bits: round or truncate")
    parser.add_argument("--limit", type=int, help="only the first so many items")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path, help="file or folder of metric weights")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    try:
        options = parser.parse_args(args)
        compare(
            options.models, options.data if len(options.data) > 1 else options.data[0], options.out, options.names,
            tuple(options.lengths), None if options.metrics is None else tuple(options.metrics), tuple(options.codecs),
            options.batch_size, options.size, options.preset, options.rounding, options.limit, options.device,
            options.weights, options.workers, options.overwrite,
        )
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0
