"""`mmtok tokenize SHARDS OUT --model NAME`."""

from __future__ import annotations

from collections.abc import Sequence

from mmtok.console import Parser


def command_line(args: Sequence[str], prog: str = "mmtok tokenize") -> int:
    """Parses, runs, prints the summary. 0 done, 1 done but samples were bad, as all commands."""
    parser = Parser(prog, description="Media shards into token shards; killed or not, start it again to go on.")
    parser.add_argument("shards", nargs="+", help="paths, folders, globs, brace lists, remote addresses")
    parser.add_argument("out", help="folder of the token shards: new, or begun by the same command")
    parser.add_argument("--model", required=True, help="catalogue name, folder, or hf:owner/name")
    parser.add_argument("--format", choices=["packed", "mmt"], default="packed", help="flat ids, or .mmt files in tars")
    parser.add_argument("--size", type=int, help="side of images in pixels (default: the tokenizer's)")
    parser.add_argument("--seconds", type=float, help="only the first so many seconds of audio")
    parser.add_argument("--num-tokens", type=int, help="length of the prefix that is sent")
    parser.add_argument("--num-quantizers", type=int, help="residual depth that is sent")
    parser.add_argument("--text", action="store_true", help="store captions too")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu", help="cpu, cuda (each process its own), cuda:1, mps")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine; 0 works in this one")
    parser.add_argument("--loader-workers", type=int, default=0, help="processes that decode, for each worker")
    parser.add_argument("--max-bad-fraction", type=float, default=0.01, help="share of bad samples that stops a shard")
    parser.add_argument("--driver", choices=["processes", "ray"], default="processes")
    options = parser.parse_args(args)
    if min(options.batch_size, options.workers + 1, options.loader_workers + 1) < 1:
        raise ValueError("--batch-size must be at least 1, --workers and --loader-workers at least 0")

    from mmtok.corpus.drivers import tokenize
    from mmtok.corpus.job import Job

    job = Job(
        options.out, options.model, options.format, options.size, options.seconds, options.num_tokens,
        options.num_quantizers, options.text, options.batch_size, options.loader_workers, options.max_bad_fraction,
        options.device,
    )  # fmt: skip
    summary = tokenize(options.shards, job, options.workers, options.driver)
    if summary is None:
        print(f"{options.out}: this part is done; others are still missing")
        return 0
    print(
        f"{options.out}: {summary['samples']} samples, {summary['codes']} codes, {summary['bits'] / 8e6:.3f} MB of "
        f"information in {summary['bytes'] / 1e6:.3f} MB, {summary['codes_per_worker_second']:.0f} codes/s a worker, "
        f"usage {' '.join(f'{100 * u:.1f}%' for u in summary['usage'][:8])}"
    )
    for reason, count in summary["bad"].items():
        print(f"  left out: {count} {reason}")
    return 1 if summary["bad"] else 0
