"""`export`: files in a folder, and a report that says how far they agree with the tokenizer."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmtok.export.card import write_card
from mmtok.export.graphs import DecoderGraph, graphs
from mmtok.folder import save
from mmtok.tokenizer import Tokenizer

Target = Literal["safetensors", "onnx", "pt2", "hub"]
TARGETS: tuple[Target, ...] = ("safetensors", "onnx", "pt2", "hub")
BATCHES = (1, 3)  # tried on the exported files; they were traced with two
MIN_EQUAL, MAX_ERROR = 0.99, 1e-3
Encode = Callable[[Tensor], tuple[Tensor, ...]]
Decode = Callable[[tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Report:
    """How far an export agrees with its tokenizer, over batches of one and three.

    files        what was written, names within the folder
    positions    codes compared
    codes_equal  share of them that is equal; others are near ties
    max_error    largest difference of decoded media, range 2
    runtime      what ran the exported files
    """

    files: tuple[str, ...]
    positions: int = 0
    codes_equal: float = 1.0
    max_error: float = 0.0
    runtime: str = ""


def export(
    tokenizer: Tokenizer, out: str | os.PathLike[str], to: Target = "onnx", length: int | None = None,
    size: tuple[int, ...] | None = None, name: str | None = None, licence: str | None = None,
) -> Report:
    """Writes a tokenizer into the new folder `out`.

    to      "onnx": encoder.onnx, decoder.onnx; "pt2": encoder.pt2, decoder.pt2 (torch.export); "safetensors": our
            folder; "hub": our folder with a model card, ready to be uploaded
    length  of graphs: first so many codes, or codebooks where depth varies
    size    of graphs: media size per axis; None is the tokenizer's own (audio: one second)
    name, licence  on the model card
    The graphs take any batch. parity.json holds the report. ValueError when the tokenizer cannot be a graph (and why),
    or when the files do not agree with it.
    """
    folder = Path(out)
    if to not in TARGETS:
        raise ValueError(f"export: --to takes {', '.join(TARGETS)}, got {to}")
    if folder.exists():
        raise ValueError(f"{folder} exists: give another --out")
    if to in ("safetensors", "hub"):
        if length is not None or size is not None:
            raise ValueError(f"export: length and size belong to graphs (onnx, pt2), not to {to}")
        save(tokenizer, folder)
        files = ["config.yaml", "model.safetensors"]
        if to == "hub":
            files.append(write_card(folder, tokenizer, name or folder.name, licence).name)
        return Report(tuple(files))
    encoder, decoder = graphs(tokenizer, length, size)
    media = _media(tokenizer, tuple(size or tokenizer.size), 2)
    with torch.no_grad():
        found = encoder(media)
    grids = found if isinstance(found, tuple) else (found,)
    names = ["codes"] if len(grids) == 1 else [f"codes_{i}" for i in range(len(grids))]
    folder.mkdir(parents=True)
    write = _write_onnx if to == "onnx" else _write_pt2
    encode = write(encoder, (media,), folder / f"encoder.{to}", ["media"], names)
    decode = write(decoder, grids, folder / f"decoder.{to}", names, ["media"])
    report = _compare(
        tokenizer, lambda x: tuple(encode(x)), lambda codes: decode(*codes)[0], tuple(media.shape[2:]), length, to,
        folder,
    )
    (folder / "parity.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    if report.codes_equal < MIN_EQUAL or report.max_error > MAX_ERROR:
        raise ValueError(
            f"export: the files in {folder} differ from the tokenizer: {report.codes_equal:.2%} of the codes are equal,"
            f" decoded media differ by up to {report.max_error:.1e}"
        )
    return report


def _compare(
    tokenizer: Tokenizer, encode: Encode, decode: Decode, size: tuple[int, ...], length: int | None, to: str,
    folder: Path,
) -> Report:
    equal = positions = 0
    error = 0.0
    depth = length if length is not None and tokenizer.modality == "audio" else None
    count = length if depth is None else None
    for batch in BATCHES:
        x = _media(tokenizer, size, batch)
        tokens = tokenizer.encode(x.to(_device(tokenizer)), num_tokens=count, num_quantizers=depth).to("cpu")
        wanted = []
        for found, grid, keep in zip(encode(x), tokens.grids, tokens.keep, strict=True):
            inside = tuple(slice(n) for n in found.shape)
            wanted.append(grid[inside].contiguous())
            sent = keep.expand_as(grid)[inside]
            equal += int((found == wanted[-1])[sent].sum())
            positions += int(sent.sum())
        theirs = decode(tuple(wanted))[tuple(slice(n) for n in x.shape)]
        ours = tokenizer.decode(tokens.to(_device(tokenizer))).cpu()[tuple(slice(n) for n in theirs.shape)]
        error = max(error, float((theirs - ours).abs().max()))
    files = tuple(sorted(path.name for path in folder.iterdir()))
    return Report(files, positions, equal / positions, error, "onnxruntime" if to == "onnx" else "torch")


def _write_onnx(
    module: nn.Module, example: tuple[Tensor, ...], path: Path, takes: list[str], gives: list[str]
) -> Callable[..., list[Tensor]]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  the exporter of torch needs it
    except ImportError as error:
        raise ValueError(f"export: onnx needs pip install 'mmtok[export]' ({error})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on the exporter's own naming
            torch.onnx.export(
                module, example, str(path), input_names=takes, output_names=gives, dynamo=True,
                dynamic_shapes=_any_batch(module, example), verbose=False, external_data=False,
            )
    except Exception as error:  # the exporter raises many kinds
        raise ValueError(f"export: ONNX has no form of {path.stem}: {_reason(error)}") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> list[Tensor]:
        named = {name: value.numpy() for name, value in zip(takes, given, strict=True)}
        return [torch.from_numpy(value) for value in session.run(gives, named)]

    return run


def _write_pt2(
    module: nn.Module, example: tuple[Tensor, ...], path: Path, takes: list[str], gives: list[str]
) -> Callable[..., list[Tensor]]:
    try:
        program = torch.export.export(module, example, dynamic_shapes=_any_batch(module, example))
    except Exception as error:
        raise ValueError(f"export: torch.export has no form of {path.stem}: {_reason(error)}") from error
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()

    @torch.no_grad()
    def run(*given: Tensor) -> list[Tensor]:
        found = loaded(*given)
        return list(found) if isinstance(found, tuple) else [found]

    return run


def _any_batch(module: nn.Module, example: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """A free first axis for every input; the decoder takes its grids as one variadic argument."""
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    each = tuple({0: batch} for _ in example)
    return (each,) if isinstance(module, DecoderGraph) else each


def _media(tokenizer: Tokenizer, size: tuple[int, ...], batch: int) -> Tensor:
    """Smooth test media float32 [batch, C, *size] in [-1, 1]: sums of waves, other ones for every item."""
    channels = getattr(tokenizer, "channels", 3)
    generator = torch.Generator().manual_seed(batch)
    total = torch.zeros(batch, channels, *size)
    for _ in range(6):
        phase = 2 * math.pi * torch.rand(batch, channels, *[1] * len(size), generator=generator)
        for axis, n in enumerate(size):
            shape = [1] * len(size)
            shape[axis] = n
            cycles = 1 + 19 * torch.rand(batch, channels, *[1] * len(size), generator=generator)
            phase = phase + 2 * math.pi * cycles * torch.linspace(0, 1, n).view(shape)
        total += phase.sin() / 6
    return total


def _device(tokenizer: Tokenizer) -> torch.device:
    return next(tokenizer.parameters()).device


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{type(error).__name__}: {' '.join(lines[0].split())[:300]}"
