"""Frechet distance of images decoded from perturbed codes, over a stated grid (see `mmtok.metrics.pfid`)."""

import argparse
import json
import sys
from pathlib import Path

from mmtok.evaluate import PRESETS, eval_loader, join
from mmtok.hub import load
from mmtok.metrics.pfid import GRID, Perturbation, PerturbedFrechet
from mmtok.metrics.suite import Suite


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="catalogue name, folder, or hf:owner/name")
    parser.add_argument("--data", required=True, nargs="+", help="shards, their folder, or samples:image")
    parser.add_argument("--rates", type=float, nargs="+", help="default: 0.25 0.5 1")
    parser.add_argument("--neighbours", type=int, nargs="+", help="default: 10 50 100")
    parser.add_argument("--metric", default="rfid", choices=("rfid", "fd_vgg16"), help="fd_vgg16: offline stand-in")
    parser.add_argument("--size", type=int, help="side in pixels (default: the model's)")
    parser.add_argument("--preset", default=PRESETS[0], help="resize and crop: " + ", ".join(PRESETS))
    parser.add_argument("--limit", type=int, help="only the first so many images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path, help="file or folder of metric weights")
    parser.add_argument("--out", type=Path, help="file for the values as JSON")
    options = parser.parse_args(args)
    rates = options.rates or sorted({cell.rate for cell in GRID})
    counts = options.neighbours or sorted({cell.neighbours for cell in GRID})
    try:
        rank, world, device = join(options.device)
        tokenizer = load(options.model, device)
        (extractor,) = Suite((options.metric,), device, options.weights).extractors
        grid = [Perturbation(rate, count) for rate in rates for count in counts]
        run = PerturbedFrechet(tokenizer, extractor, grid, options.seed)
        data = options.data if len(options.data) > 1 else options.data[0]
        side = options.size or tokenizer.size[0]
        loader, _ = eval_loader(
            data, options.preset, side, options.batch_size, options.workers, options.limit, (), rank, world
        )
        for batch in loader:
            run.update(batch.to(device))
        values = run.compute()
    except (ValueError, OSError) as error:
        print(f"pfid: error: {error}", file=sys.stderr)
        return 2
    if rank == 0:
        for key, value in values.items():
            print(f"{key:32} {value:.4f}")
        if options.out is not None:
            options.out.write_text(json.dumps(values, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
