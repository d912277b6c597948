"""Encode + decode of a video recipe against its own convolutions, attention and matrix products; streams; memory.

    python benchmarks/video.py [--recipe video/vidtok_fsq_488_32768] [--frames 17] [--size 128] [--json video.json]

The floor replays every convolution, attention and matrix product that encode and decode ran, alone, with the same
shapes and memory layouts. Floor, whole clip, stream and the same tokenizer after `optimize`, float32 and bfloat16,
alternate; a figure is the median of its rounds. Weights are random. Bars: encode + decode at most 1.15 of the floor,
stream at most 1.10 of the whole clip, optimized at least 1.2 times faster in float32 and 2 times in bfloat16, peak
memory of the long stream at most 1.10 of the short one.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from output import write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmtok.hub import build
from mmtok.listing import config_path
from mmtok.optimize import optimize
from mmtok.tokenizer import Tokenizer
from mmtok.training.config_file import read_config_file

PRODUCTS = (
    "aten::convolution", "aten::mkldnn_convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_attention_math_for_mps",
    "mmtok::attention",
)  # fmt: skip
Call = tuple[Callable[..., Any], list[Any], dict[str, Any]]


class Recorder(TorchDispatchMode):
    """Keeps the products that run under it, with the layout of their operands instead of the operands."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in PRODUCTS:
            self.calls.append((func, [_layout(a) for a in args], {k: _layout(v) for k, v in (kwargs or {}).items()}))
        return func(*args, **(kwargs or {}))


def _layout(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), tuple(value.stride()), value.dtype)
    return value


def _operand(value: Any, pool: dict[Any, Tensor]) -> Any:
    """A tensor of a recorded layout; equal layouts share one, so that memory stays that of the model."""
    if not (isinstance(value, tuple) and value and value[0] == "tensor"):
        return value
    if value not in pool:
        _, shape, stride, dtype = value
        if dtype == torch.bool:
            pool[value] = torch.ones(shape, dtype=dtype)
        else:
            length = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
            pool[value] = (torch.randn(length) / 8).to(dtype).as_strided(shape, stride)
    return pool[value]


def tokenizer_of(recipe: str, tiny: bool) -> Tokenizer:
    config = OmegaConf.create({"model": read_config_file(config_path(recipe), tiny=tiny)["model"]})
    torch.manual_seed(0)
    return build(OmegaConf.to_container(config.model.tokenizer, resolve=True)).eval()  # type: ignore[arg-type]


def whole(model: Tokenizer, x: Tensor) -> tuple[float, float]:
    """Seconds of encode and of decode."""
    start = time.perf_counter()
    tokens = model.encode(x)
    middle = time.perf_counter()
    model.decode(tokens)
    return middle - start, time.perf_counter() - middle


def stream(model: Tokenizer, x: Tensor, chunk: int) -> float:
    """Seconds of encoding and decoding `chunk` frames at a time."""
    start = time.perf_counter()
    there = back = model.stream_state()
    pieces = x.split(chunk, 2)
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        tokens, there = model.encode_chunk(piece, there, last)
        _, back = model.decode_chunk(tokens, back, last)
    return time.perf_counter() - start


def peak_memory(options: argparse.Namespace, frames: int) -> float:
    """MB at the peak of a stream of so many frames, in a process of its own; frames are made as they are needed."""
    command = [sys.executable, __file__, "--recipe", options.recipe, "--size", str(options.size)]
    command += ["--chunk", str(options.chunk), "--only-memory", str(frames)] + ["--tiny"] * options.tiny
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


@torch.no_grad()
def stream_memory(model: Tokenizer, size: int, frames: int, chunk: int) -> float:
    import resource

    there = back = model.stream_state()
    for start in range(0, frames, chunk):
        last = start + chunk >= frames
        piece = torch.rand(1, 3, min(chunk, frames - start), size, size) * 2 - 1
        tokens, there = model.encode_chunk(piece, there, last)
        _, back = model.decode_chunk(tokens, back, last)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="video/vidtok_fsq_488_32768", help="as `mmtok list` prints it")
    parser.add_argument("--tiny", action="store_true", help="the recipe's tiny variant: only to try the script")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=8, help="frames a chunk of the stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs=2, metavar=("SHORT", "LONG"), help="frames of two streams")
    parser.add_argument("--only-memory", type=int, metavar="FRAMES", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = tokenizer_of(options.recipe, options.tiny)
    if options.only_memory:
        print(stream_memory(model, options.size, options.only_memory, options.chunk))
        return
    x = torch.rand(1, 3, options.frames, options.size, options.size) * 2 - 1
    with Recorder() as recorder:
        model.decode(model.encode(x))
    pool: dict[Any, Tensor] = {}
    calls = [
        (func, [_operand(a, pool) for a in args], {k: _operand(v, pool) for k, v in named.items()})
        for func, args, named in recorder.calls
    ]

    def floor() -> float:
        start = time.perf_counter()
        for func, args, named in calls:
            func(*args, **named)
        return time.perf_counter() - start

    try:
        model.stream_state()
        streams = True
    except ValueError:
        streams = False
    kinds = {"optimized": torch.float32, "bfloat16": torch.bfloat16}
    fast = {name: optimize(copy.deepcopy(model), dtype) for name, dtype in kinds.items()}
    tokens = model.encode(x)
    equal = {name: float((other.encode(x).codes == tokens.codes).float().mean()) for name, other in fast.items()}
    times: dict[str, list[float]] = {name: [] for name in ("floor", "encode", "decode", "whole", "stream", *fast)}
    for _ in range(options.rounds + 1):
        times["floor"].append(floor())
        encode, decode = whole(model, x)
        times["encode"].append(encode)
        times["decode"].append(decode)
        times["whole"].append(encode + decode)
        if streams:
            times["stream"].append(stream(model, x, options.chunk))
        for name, other in fast.items():
            times[name].append(sum(whole(other, x)))
    # the first round warms up
    ms = {name: round(1000 * statistics.median(values[1:]), 2) for name, values in times.items() if values}
    result: dict[str, Any] = {
        "benchmark": "video", "recipe": options.recipe, "tiny": options.tiny, "frames": options.frames,
        "size": options.size, "products": len(calls), "ms": ms, "ratio": round(ms["whole"] / ms["floor"], 3),
        "bar": 1.15,
        "optimized": {
            name: {"times_faster": round(ms["whole"] / ms[name], 3), "equal_codes": equal[name], "bar": bar}
            for name, bar in (("optimized", 1.2), ("bfloat16", 2.0))
        },
    }  # fmt: skip
    if streams:
        result |= {"chunk": options.chunk, "stream_ratio": round(ms["stream"] / ms["whole"], 3), "stream_bar": 1.10}
    if options.memory and streams:
        short, long = (peak_memory(options, frames) for frames in options.memory)
        result["memory"] = {
            "frames": options.memory, "mb": [round(short, 1), round(long, 1)], "ratio": round(long / short, 3),
            "bar": 1.10,
        }  # fmt: skip
    result |= {
        "rounds": options.rounds, "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
        "torch": torch.__version__, "machine": platform.machine(),
    }  # fmt: skip
    write(result, options.json)


if __name__ == "__main__":
    main()
