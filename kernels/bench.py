"""`python -m mmtok.kernels.bench [--json FILE]`: our operators against the public libraries on this machine.

Times are medians in milliseconds on `--threads` threads; each case warms up once. "of peak" is the share of the
machine's multiply-add rate, measured in the same run by independent multiply-adds in registers. "extra" is the growth
of the process's resident memory during one call beyond its outputs (Linux). Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmtok.kernels import describe, native
from mmtok.kernels.bench_cases import (
    Cases,
    available_paths,
    cuda_cases,
    disagreement,
    nearest_cases,
    residual_cases,
    training_cases,
)

NEAREST = ((8192, 16384, 8), (4096, 16384, 256), (8192, 8192, 64))  # N, V, D
RESIDUAL = ((9, 1024, 8, 6880), (8, 1024, 128, 6000))  # Q, V, D, N
TRAINING = (8192, 16384, 8)  # N, V, D


def median_ms(run: Callable[[], object], budget: float) -> float:
    """Median of at least 3 runs; more while they fit in `budget` seconds."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 50):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def extra_mib(run: Callable[[], object]) -> float | None:
    """Growth of the peak resident memory during one call, in MiB; None where Linux's counters are missing."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
        before = _status("VmRSS")
        run()
        return (_status("VmHWM") - before) / 1024
    except OSError:
        return None


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise OSError(field)


def run_cases(title: str, cases: Cases, budget: float, flops: float, peak: float) -> dict[str, object]:
    """Times the cases, prints one table, returns it as a record."""
    base = None
    print(f"\n{title}\n{'':30s} {'ms':>9s} {'slower':>8s} {'of peak':>8s} {'extra MiB':>10s}")
    rows = {}
    for name, run in cases.items():
        ms = median_ms(run, budget)
        extra = extra_mib(run)
        base = base or ms
        share = flops / (ms / 1e3) / peak if peak and flops else None
        rows[name] = {"ms": ms, "times_ours": ms / base, "of_peak": share, "extra_mib": extra}
        print(f"{name:30s} {ms:9.2f} {ms / base:7.1f}x {'' if share is None else f'{share:8.0%}'} "
              f"{'' if extra is None else f'{extra:10.1f}'}", flush=True)
    return {"title": title, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mmtok.kernels.bench", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.4, help="time spent on each case")
    parser.add_argument("--only", choices=("nearest", "residual", "training", "accuracy", "cuda"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    paths = available_paths()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {options.threads} threads\n"
          f"{describe()}")
    peaks = {path: statistics.median(native.multiply_add_peak(path, options.threads, 2_000_000) for _ in range(9))
             for path in paths if path != "torch"}
    peak = max(peaks.values(), default=0.0)
    print("multiply-add peak, GFLOP/s: " + ", ".join(f"{path} {rate / 1e9:.0f}" for path, rate in peaks.items()))
    tables: list[dict[str, object]] = []
    wanted = lambda section: options.only in (None, section)  # noqa: E731
    with torch.no_grad():
        for n, v, d in NEAREST if wanted("nearest") else ():
            x, book = torch.randn(n, d), torch.randn(v, d)
            tables.append(run_cases(f"nearest code, {n} x {v} x {d}", nearest_cases(x, book, paths), options.seconds,
                                    2.0 * n * v * d, peak))
        for q, v, d, n in RESIDUAL if wanted("residual") else ():
            x, books = torch.randn(n, d), torch.randn(q, v, d)
            tables.append(run_cases(f"residual encode, {q} x {v} x {d}, {n} rows", residual_cases(x, books, paths),
                                    options.seconds, 2.0 * q * n * v * d, peak))
        n, v, d = TRAINING
        if wanted("training"):
            tables.append(run_cases(f"EMA training step, {n} x {v} x {d}", training_cases(torch.randn(n, d), v),
                                    options.seconds, 0.0, 0.0))
        if wanted("accuracy"):
            tables.append(accuracy())
        if torch.cuda.is_available() and wanted("cuda"):
            for n, v, d in NEAREST:
                x, book = torch.randn(n, d, device="cuda"), torch.randn(v, d, device="cuda")
                tables.append(run_cases(f"CUDA nearest code, {n} x {v} x {d}", cuda_cases(x, book), options.seconds,
                                        0.0, 0.0))
    if options.json:
        record = {"machine": platform.platform(), "torch": torch.__version__, "threads": options.threads,
                  "status": describe(), "peak_flops": peaks, "tables": tables}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def accuracy() -> dict[str, object]:
    """Codes against float64, for plain data and for data with a large shared mean."""
    print(f"\ncodes against float64\n{'':30s} {'differ':>9s} {'excused':>9s}")
    rows = {}
    for _, v, d in NEAREST:
        for mean in (0.0, 30.0):
            x, book = torch.randn(2048, d) + mean, torch.randn(v, d) + mean
            wrong, excused = disagreement(x, book)
            name = f"2048 x {v} x {d}, mean {mean:g}"
            rows[name] = {"differ": wrong, "excused": excused}
            print(f"{name:30s} {wrong:9.3%} {excused:9.3%}", flush=True)
    return {"title": "codes against float64", "rows": rows}


if __name__ == "__main__":
    main()
