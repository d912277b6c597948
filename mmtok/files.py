"""Media files to token files and back, for `mmtok encode` and `mmtok decode`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from mmtok.bitstream import load_tokens, save_tokens
from mmtok.tokenizer import Tokenizer

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
TOKENS = (".mmt",)


def encode_files(
    tokenizer: Tokenizer, inputs: list[Path], out: Path, num_tokens: int | None = None,
    num_quantizers: int | None = None, overwrite: bool = False,
) -> int:
    """Writes one `.mmt` a file; returns 0, or 1 when a file could not be read (each is named on stderr).

    inputs  files and folders; the images of a folder keep their relative paths below `out`
    out     a `.mmt` path for one input file, else a folder
    ValueError or OSError, before anything is written, when nothing matches or an output exists.
    """
    _require_pillow()
    device, failed, images, written, pixels = _device(tokenizer), 0, 0, 0, 0
    for source, target in plan_files(inputs, out, IMAGES, TOKENS, overwrite):
        try:
            x = read_image(source)
        except (ValueError, OSError) as error:
            failed += _skip("encode", source, error)
            continue
        try:
            tokens = tokenizer.encode(x.to(device), num_tokens=num_tokens, num_quantizers=num_quantizers)
        except ValueError as error:  # a length that this model does not have: more files would not help
            raise ValueError(f"{source}: {error}") from None
        target.parent.mkdir(parents=True, exist_ok=True)
        size, area = save_tokens(target, tokens), x.shape[-1] * x.shape[-2]
        images, written, pixels = images + 1, written + size, pixels + area
        print(f"{source} -> {target}  {x.shape[-1]}x{x.shape[-2]}  {size} bytes  {8 * size / area:.4f} bpp")
    if images > 1:
        print(f"{images} images, {written} bytes, {8 * written / pixels:.4f} bpp")
    return 1 if failed else 0


def decode_files(tokenizer: Tokenizer, inputs: list[Path], out: Path, seed: int = 0, overwrite: bool = False) -> int:
    """Writes one PNG a `.mmt` file; returns 0, or 1 when a file could not be decoded (each is named on stderr).

    inputs  files and folders; the token files of a folder keep their relative paths below `out`
    out     an image path for one input file (its ending chooses the format), else a folder
    ValueError or OSError, before anything is written, when nothing matches or an output exists.
    """
    _require_pillow()
    device, failed = _device(tokenizer), 0
    for source, target in plan_files(inputs, out, TOKENS, (".png", *IMAGES), overwrite):
        try:
            tokens = load_tokens(source, tokenizer)
        except (ValueError, OSError) as error:
            failed += _skip("decode", source, error)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_image(target, tokenizer.decode(tokens.to(device), seed=seed)[0])
        print(f"{source} -> {target}")
    return 1 if failed else 0


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """float32 [1, 3, H, W] in [-1, 1]; ValueError names the file when it is no readable image."""
    _require_pillow()
    from mmtok.data.decode import BadSample, decode_image

    try:
        return decode_image(Path(path).read_bytes())[None]
    except BadSample as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def write_image(path: str | os.PathLike[str], x: Tensor) -> None:
    """Writes [3, H, W] in [-1, 1] in the format of the file's ending; replaces an existing file at once."""
    _require_pillow()
    from PIL import Image

    path = Path(path)
    pixels = ((x.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        if path.suffix.lower() in (".jpg", ".jpeg", ".webp", ".avif"):
            image.save(temporary, quality=95)
        else:
            image.save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def plan_files(
    inputs: list[Path], out: Path, wanted: tuple[str, ...], written: tuple[str, ...], overwrite: bool
) -> list[tuple[Path, Path]]:
    """(source, target) per file.

    wanted   endings to look for in folders; a file named by itself is taken whatever its ending
    written  endings an output file may have; the first is used inside a folder
    ValueError when nothing matches, two files share a target, or a target exists.
    """
    for path in inputs:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
    if len(inputs) == 1 and inputs[0].is_file() and out.suffix and not out.is_dir():
        if out.suffix.lower() not in written:
            raise ValueError(f"--out {out}: name a file ending in {', '.join(written)}, or a folder that exists")
        found = {out: inputs[0]}
    else:
        found = _below(inputs, out, wanted, written[0])
    for target in found:
        if target.is_dir():
            raise ValueError(f"{target} is a folder: give another --out")
        if target.exists() and not overwrite:
            raise ValueError(f"{target} exists: give another --out, or --overwrite")
    return [(source, target) for target, source in found.items()]


def _below(inputs: list[Path], out: Path, wanted: tuple[str, ...], ending: str) -> dict[Path, Path]:
    """target -> source, with all targets below the folder `out`."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder, or one ending in {ending} for a single input")
    found: dict[Path, Path] = {}
    for path in inputs:
        root = path if path.is_dir() else path.parent
        for source in _walk(path, wanted):
            target = (out / source.relative_to(root)).with_suffix(ending)
            if found.setdefault(target, source) != source:
                raise ValueError(f"{source} and {found[target]} would both become {target}: rename one")
    if not found:
        raise ValueError(f"{', '.join(map(str, inputs))}: no file ends in {', '.join(wanted)}")
    return found


def _walk(path: Path, wanted: tuple[str, ...]) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in wanted)


def _skip(command: str, source: Path, error: Exception) -> int:
    """Names a file that was left out; returns 1, to be added up."""
    text = f"{source}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
    print(f"mmtok {command}: skipped {' '.join(text.split())}", file=sys.stderr)
    return 1


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("image files need Pillow: pip install pillow, or pip install 'mmtok[train]'") from None


def _device(tokenizer: Tokenizer) -> torch.device:
    return next(tokenizer.parameters()).device
