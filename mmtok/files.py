"""Media files to token files and back, for `mmtok encode` and `mmtok decode`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from mmtok.bitstream import load_tokens, save_tokens
from mmtok.tokenizer import Tokenizer


def encode_files(
    tokenizer: Tokenizer, inputs: list[Path], out: Path, num_tokens: int | None = None,
    num_quantizers: int | None = None, overwrite: bool = False,
) -> int:
    """Writes one `.mmt` a file; returns 0, or 1 when a file could not be read (each is named on stderr).

    inputs  files and folders; the images of a folder keep their relative paths below `out`
    out     a `.mmt` path for one input file, else a folder
    """
    device, failed, images, written, pixels = _device(tokenizer), 0, 0, 0, 0
    for source, target in _pairs(inputs, out, ".mmt", _image_names()):
        _may_write(target, overwrite)
        try:
            x = read_image(source)
        except ValueError as error:
            print(f"mmtok encode: skipped {error}", file=sys.stderr)
            failed += 1
            continue
        tokens = tokenizer.encode(x.to(device), num_tokens=num_tokens, num_quantizers=num_quantizers)
        target.parent.mkdir(parents=True, exist_ok=True)
        size = save_tokens(target, tokens)
        images, written, pixels = images + 1, written + size, pixels + x.shape[-1] * x.shape[-2]
        print(f"{source} -> {target}  {x.shape[-1]}x{x.shape[-2]}  {size} bytes  {8 * size / (x.shape[-1] * x.shape[-2]):.4f} bpp")
    if images > 1:
        print(f"{images} images, {written} bytes, {8 * written / pixels:.4f} bpp" + (f", {failed} skipped" if failed else ""))
    return 1 if failed else 0


def decode_files(tokenizer: Tokenizer, inputs: list[Path], out: Path, seed: int = 0, overwrite: bool = False) -> int:
    """Writes one PNG a `.mmt` file; returns 0, or 1 when a file could not be decoded (each is named on stderr)."""
    device, failed = _device(tokenizer), 0
    for source, target in _pairs(inputs, out, ".png", (".mmt",)):
        _may_write(target, overwrite)
        try:
            tokens = load_tokens(source, tokenizer)
        except ValueError as error:
            print(f"mmtok decode: skipped {error}", file=sys.stderr)
            failed += 1
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_image(target, tokenizer.decode(tokens.to(device), seed=seed)[0])
        print(f"{source} -> {target}")
    return 1 if failed else 0


def read_image(path: Path) -> Tensor:
    """float32 [1, 3, H, W] in [-1, 1]; ValueError names the file when it is no readable image."""
    from mmtok.data.decode import BadSample, decode_image, to_float

    try:
        return to_float(decode_image(path.read_bytes()))[None]
    except BadSample as error:
        raise ValueError(f"{path}: {error}") from None


def write_image(path: Path, x: Tensor) -> None:
    """Writes [3, H, W] in [-1, 1] in the format of the file's ending."""
    from PIL import Image

    pixels = ((x.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def _pairs(inputs: list[Path], out: Path, ending: str, wanted: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
    """(source, target) per file; ValueError when nothing matches or two files would share a target."""
    single = len(inputs) == 1 and inputs[0].is_file() and out.suffix != "" and not out.is_dir()
    if single:
        yield inputs[0], out
        return
    found: dict[Path, Path] = {}
    for path in inputs:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        root = path if path.is_dir() else path.parent
        for source in _walk(path, wanted):
            target = (out / source.relative_to(root)).with_suffix(ending)
            if target in found:
                raise ValueError(f"{source} and {found[target]} would both become {target}: rename one")
            found[target] = source
    if not found:
        raise ValueError(f"{', '.join(map(str, inputs))}: no file ends in {', '.join(wanted)}")
    for target, source in found.items():
        yield source, target


def _walk(path: Path, wanted: tuple[str, ...]) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in wanted)


def _may_write(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists: give another --out, or --overwrite")


def _image_names() -> tuple[str, ...]:
    from mmtok.data.decode import EXTENSIONS

    return tuple(f".{ending}" for ending in EXTENSIONS)


def _device(tokenizer: Tokenizer) -> torch.device:
    return next(tokenizer.parameters()).device
