"""The `mmtok` command. Every import that costs time happens inside the subcommand that needs it.

Exit codes: 0 done; 1 done, but files or samples were skipped (each is named); 2 a user's mistake (one line on stderr);
130 Ctrl-C. MMTOK_DEBUG=1 shows the traceback behind a one-line error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtok import __version__
from mmtok.console import Parser, one_line

if TYPE_CHECKING:
    from mmtok.tokenizer import Tokenizer

TRAINING = ("train", "fit", "validate", "test")


def main(args: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code; SystemExit after --help and from Lightning's parser."""
    argv = list(sys.argv[1:] if args is None else args)
    try:
        return _run(argv)
    except BrokenPipeError:  # `mmtok list | head`; stdout is closed, so its flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        ours = isinstance(error, ModuleNotFoundError) and (error.name or "mmtok").split(".")[0] == "mmtok"
        if ours or os.environ.get("MMTOK_DEBUG"):
            raise
        print(f"mmtok: error: {one_line(error)}", file=sys.stderr)
        return 2


def _run(argv: list[str]) -> int:
    if argv and argv[0] in TRAINING:
        # Lightning's own parser takes over, so that the whole configuration is visible on the command line
        from mmtok.training.cli import main as train

        train(["fit" if argv[0] == "train" else argv[0], *argv[1:]])
        return 0
    if argv and argv[0] == "eval":
        from mmtok.evaluate import command_line

        return command_line("Measures a tokenizer at every length.", args=argv[1:], prog="mmtok eval")
    if argv and argv[0] == "doctor":
        from mmtok.doctor import command_line as doctor

        return doctor(argv[1:])
    if argv and argv[0] == "tokenize":
        from mmtok.corpus.command import command_line as tokenize

        return tokenize(argv[1:])
    if argv and argv[0] == "compare":
        from mmtok.compare import command_line as compare

        return compare("Measures several tokenizers on the same data by one protocol.", argv[1:], "mmtok compare")
    options = _parser().parse_args(argv)
    return int(options.run(options) or 0)


def _parser() -> Parser:
    parser = Parser(
        "mmtok", description="Train, measure and use discrete tokenizers for images, video and audio.",
        epilog="Training takes Lightning's options: mmtok train -c configs/image/....yaml (also: validate, test).",
    )
    parser.add_argument("--version", action="version", version=f"mmtok {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser("train", help="train a tokenizer from a YAML (options: mmtok train --help)", add_help=False)
    _file_commands(commands)
    _shard_commands(commands)
    commands.add_parser("doctor", help="is everything in order: environment, kernels, weights, shards, logging")
    commands.add_parser("tokenize", help="media shards to token shards (options: mmtok tokenize --help)")
    commands.add_parser("eval", help="quality, bits and curves on shards, with a report (options: mmtok eval --help)")
    commands.add_parser("compare", help="one table over several tokenizers (options: mmtok compare --help)")

    command = _add(commands, "demo", "train a small tokenizer on sample media and write a report", _demo)
    command.add_argument("modality", choices=["image", "audio", "video"])
    command.add_argument(
        "--out", type=Path,
        help="folder for shards, run and report: a new one, or an earlier demo, which is replaced",
    )

    _model_commands(commands)
    return parser


def _model_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    command = _add(commands, "list", "tokenizers that load by name, and recipes that train", _list)
    command.add_argument("name", nargs="?", help="all about one of them: files, licences, numbers and their protocol")
    command.add_argument("--remote", action="store_true", help="published checkpoints that are downloaded on first use")

    command = _add(commands, "fetch", "download published checkpoints into MMTOK_HOME", _fetch)
    command.add_argument("names", nargs="+", help="names of mmtok list --remote, or hf:owner/name")
    command.add_argument("--accept-licence", action="store_true", help="consent to non-commercial licences")

    command = _add(commands, "export", "a tokenizer as ONNX or torch.export graphs, or a folder for the Hub", _export)
    command.add_argument("model", help="catalogue name, folder, or hf:owner/name")
    command.add_argument("--to", choices=["onnx", "pt2", "safetensors", "hub"], required=True)
    command.add_argument("--out", type=Path, required=True, help="new folder")
    command.add_argument("--length", type=int, help="graphs: first so many codes, or codebooks where depth varies")
    command.add_argument("--size", type=int, nargs="+", help="graphs: media size (default: the model's; one second)")
    command.add_argument("--licence", help="on the model card (default: the catalogue's)")

    command = _add(commands, "import", "convert a published checkpoint to a folder that mmtok loads", _import)
    command.add_argument("system", help="a module of mmtok.importers: titok, taming, llamagen, ...")
    command.add_argument("checkpoint", type=Path, help="the published file, or its folder with config")
    command.add_argument("--out", type=Path, required=True, help="new folder")
    command.add_argument("--keys", action="store_true", help="print what became of every key (import.yaml has it too)")


def _file_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    command = _add(commands, "encode", "images, sounds and videos to .mmt token files", _encode)
    command.add_argument("inputs", nargs="+", type=Path, help="files or folders")
    command.add_argument("-o", "--out", type=Path, required=True, help="a .mmt file, or a folder for several inputs")
    _model_options(command)
    command.add_argument("--num-tokens", type=int, help="length of the prefix that is sent")
    command.add_argument("--num-quantizers", type=int, help="residual depth that is sent")
    command.add_argument("--target", help="of videos: quality or rate to meet block by block, 32dB or 0.02bpp")
    command.add_argument(
        "--channels", choices=["mix", "split"], default="mix", help="of sounds: average them, or one file a channel"
    )

    command = _add(commands, "decode", ".mmt token files back to images, sounds and videos", _decode)
    command.add_argument("inputs", nargs="+", type=Path, help="files or folders")
    command.add_argument("-o", "--out", type=Path, required=True, help="a media file, or a folder for several inputs")
    _model_options(command)
    command.add_argument("--seed", type=int, default=0, help="noise of stochastic decoders")


def _shard_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    shards = commands.add_parser("shards", help="make or check WebDataset shards").add_subparsers(
        required=True, metavar="command"
    )
    command = _add(shards, "make", "media to tar shards with an index", _shards_make)
    command.add_argument("source", help="folder, .csv/.jsonl/.parquet manifest, or samples:image|audio|video")
    command.add_argument("out", type=Path, help="new folder")
    command.add_argument("--samples-per-shard", type=int, default=1000)
    command.add_argument("--shard-bytes", type=int, default=1 << 30, help="bytes of media a shard may hold")
    command.add_argument("--short-side", type=int, help="scale larger images and videos down to this, as JPEG or H.264")
    command.add_argument("--seconds", type=float, help="cut videos into clips of this length")
    command.add_argument("--gop", type=float, default=1.0, help="most seconds between key frames of such clips")
    command.add_argument("--quality", type=int, default=95, help="of that JPEG")
    command.add_argument("--tile", type=int, help="cut images into squares of this side, at several scales")
    command.add_argument("--tile-detail", type=float, default=0.0, help="leave out finer tiles with less detail")
    command.add_argument("--root", help="paths of a manifest must lie below this folder (default: the manifest's)")
    command.add_argument("--no-shuffle", action="store_true", help="keep the source's order")
    command.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")

    command = _add(shards, "check", "decode every sample; write an index for shards that have none", _shards_check)
    command.add_argument("folder", type=Path, help="folder of shards")
    command.add_argument("--rewrite", action="store_true", help="replace an index that is there")
    command.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")


def _add(
    commands: argparse._SubParsersAction[Parser], name: str, text: str, run: Callable[[argparse.Namespace], int | None]
) -> Parser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _model_options(command: Parser) -> None:
    command.add_argument("--model", required=True, help="catalogue name, folder, or hf:owner/name")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    command.add_argument("--overwrite", action="store_true", help="replace existing outputs")


def _load(options: argparse.Namespace) -> Tokenizer:
    import torch

    from mmtok import load

    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {options.device}: {str(error).splitlines()[0]}") from None
    return load(options.model, options.device)


def _encode(options: argparse.Namespace) -> int:
    from mmtok.files import encode_files

    return encode_files(
        _load(options), options.inputs, options.out, options.num_tokens, options.num_quantizers, options.overwrite,
        options.channels, options.target,
    )


def _decode(options: argparse.Namespace) -> int:
    from mmtok.files import decode_files

    return decode_files(_load(options), options.inputs, options.out, options.seed, options.overwrite)


def _list(options: argparse.Namespace) -> None:
    from mmtok.listing import print_entry, print_listing, print_remote

    if options.name is not None:
        print_entry(options.name)
    else:
        print_remote() if options.remote else print_listing()


def _fetch(options: argparse.Namespace) -> None:
    from mmtok.hub import resolve

    for name in options.names:
        print(f"{name}: {resolve(name, options.accept_licence or _ask(name))}")


def _ask(name: str) -> bool:
    """Consent to a non-commercial licence, asked for on a terminal only."""
    from mmtok.catalogue import published

    entry = published().get(name)
    if entry is None or not entry.non_commercial or not sys.stdin.isatty():
        return False
    return input(f"{name}: the weights are {entry.licence}, not for commercial use. Accept? [y/N] ").lower() == "y"


def _export(options: argparse.Namespace) -> None:
    from mmtok import load
    from mmtok.catalogue import catalogue
    from mmtok.export import export

    size = None if options.size is None else tuple(options.size)
    licence = options.licence or catalogue().get(options.model, {}).get("licence")
    name = Path(options.model).name
    report = export(load(options.model), options.out, options.to, options.length, size, name, licence)
    print(f"wrote {', '.join(report.files)} into {options.out}")
    if report.runtime:
        print(
            f"parity in {report.runtime}: {report.codes_equal:.2%} of {report.positions} codes equal,"
            f" decoded media within {report.max_error:.1e}"
        )


def _import(options: argparse.Namespace) -> None:
    import yaml

    from mmtok.hub import save
    from mmtok.importers import instantiate, read_published
    from mmtok.importers.record import describe, key_record

    if options.out.exists():
        raise ValueError(f"{options.out} exists: give another --out")
    converted = read_published(options.system, options.checkpoint)
    tokenizer = instantiate(converted, options.system)
    for line in describe(converted, options.keys):
        print(line)
    save(tokenizer, options.out)
    record = {"importer": options.system, "file": options.checkpoint.name} | key_record(converted)
    (options.out / "import.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    print(f"wrote {options.out}, tokenizer id {tokenizer.tokenizer_id}")


def _shards_make(options: argparse.Namespace) -> int:
    from mmtok.data.shards_cli import describe, make

    reports = make(
        options.source, str(options.out), options.samples_per_shard, options.shard_bytes, options.short_side,
        options.quality, options.workers, not options.no_shuffle, options.seconds, options.gop,
        options.tile, options.tile_detail, options.root,
    )
    for report in reports:
        print(describe(report))
    return 1 if any(report.bad for report in reports) else 0


def _shards_check(options: argparse.Namespace) -> int:
    from mmtok.data.shards_cli import check, describe

    report = check(str(options.folder), options.rewrite, options.workers)
    print(describe(report))
    return 1 if report.bad or report.problems else 0


def _demo(options: argparse.Namespace) -> None:
    from mmtok.demo import demo

    demo(options.modality, options.out or Path("runs") / f"demo-{options.modality}")
