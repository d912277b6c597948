"""The numbers of an evaluation as a table in the terminal."""

from __future__ import annotations

from mmtok.report.audio_result import AudioResult
from mmtok.report.labels import RATE_KEYS, USAGE_KEYS, label, quality_keys
from mmtok.report.result import EvaluationResult, Row


def columns(rows: list[Row]) -> list[str]:
    """Keys worth a column, in reading order: rate, quality, usage."""
    values = rows[-1].values
    return [key for key in (*RATE_KEYS, *quality_keys(values), *USAGE_KEYS) if key in values]


def print_table(result: EvaluationResult) -> None:
    """Prints lengths, then codec anchors, to standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    protocol = "; ".join(f"{name}: {text}" for name, text in result.protocol.items() if name in ("preset", "rounding"))
    console.print(f"{result.model}: {result.images} {result.noun} of {result.data}. {protocol}")
    originals = [result.original] if isinstance(result, AudioResult) else []
    for rows in filter(None, ([*originals, *result.lengths], result.anchors)):
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("")
        keys = columns(rows)
        for key in keys:
            table.add_column(label(key).heading, justify="right")
        for row in rows:
            table.add_row(row.label, *(label(k).text(row.values[k]) if k in row.values else "" for k in keys))
        console.print(table)
    for name, floor in result.floors.items():
        console.print(f"{name}: {floor:.2f} between two halves of the real images; differences below it say little.")
    for note in result.notes:
        console.print(note)
