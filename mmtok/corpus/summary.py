"""What a finished corpus is: `tokens.json` (the list of shards) and `summary.json` (throughput, bits, usage)."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np

from mmtok.corpus.job import FORMAT_VERSION, Job, record, write
from mmtok.data.index import Shard, make_shard, save_index

Row = dict[str, Any]


def finish(job: Job, names: list[str], seconds: float) -> Row | None:
    """Writes both files when every shard has its record, and returns the summary; None while some are missing.

    seconds  wall time of the process that calls; its own throughput is noted beside the workers' sum
    """
    rows = []
    for name in names:
        row = record(job, name)
        if row is None:
            return None
        rows.append(row)
    for path in job.folder.glob(".*.part"):  # what killed workers left; nobody is at work any more
        path.unlink(missing_ok=True)
    books = rows[0]["codebook_sizes"]
    head = {
        "format_version": FORMAT_VERSION, "format": job.format, "tokenizer_id": rows[0]["tokenizer_id"],
        "codebook_sizes": books, "vocabulary": sum(map(sum, books)),
        "shards": [{key: row[key] for key in ("name", "file", "bytes", "sha256", "samples", "codes")} for row in rows],
    }  # fmt: skip
    if job.format == "mmt":
        save_index(job.folder, [_shard(row) for row in rows])
    summary = summarise(job, rows, seconds)
    write(job.folder / "summary.json", json.dumps(summary, indent=1).encode())
    write(job.folder / "tokens.json", json.dumps(head, indent=1).encode())
    return summary


def summarise(job: Job, rows: list[Row], seconds: float) -> Row:
    """Totals over shards. Speeds are codes and samples per second of one worker, mean over the work done."""
    bad: Counter[str] = Counter()
    for row in rows:
        bad.update(row["bad"])
    summed = ("samples", "codes", "bits", "bytes", "media_units", "seconds")
    total = {key: sum(row[key] for row in rows) for key in summed}
    worked = max(total["seconds"], 1e-9)
    usage, perplexity = _usage(job, rows)
    return {
        "shards": len(rows), "samples": total["samples"], "bad": dict(bad), "codes": total["codes"],
        "bits": total["bits"], "bits_per_media_unit": total["bits"] / max(1, total["media_units"]),
        "bytes": total["bytes"], "worker_seconds": total["seconds"], "last_call_seconds": seconds,
        "codes_per_worker_second": total["codes"] / worked, "samples_per_worker_second": total["samples"] / worked,
        "usage": usage, "perplexity": perplexity,
    }  # fmt: skip


def _usage(job: Job, rows: list[Row]) -> tuple[list[float], list[float]]:
    """Share of codes that occur, and perplexity, of every codebook."""
    counts = sum(np.load(job.folder / f"{row['name']}.usage.npy", allow_pickle=False).astype(np.int64) for row in rows)
    usage, perplexity, start = [], [], 0
    for size in [size for sizes in rows[0]["codebook_sizes"] for size in sizes]:
        part = np.asarray(counts)[start : start + size]
        p = part[part > 0] / max(1, part.sum())
        usage.append(float((part > 0).mean()))
        perplexity.append(float(np.exp(-(p * np.log(p)).sum())))
        start += size
    return usage, perplexity


def _shard(row: Row) -> Shard:
    """Token shards of .mmt files have the index of any shard."""
    members = [{"mmt": (offset, size)} for offset, size in row["members"]]
    return make_shard(row["file"], row["bytes"], row["sha256"], row["keys"], members, [(0, 0)] * len(members))
