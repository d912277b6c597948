"""Image files to token files and back."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from mmtok.bitstream import load_tokens, save_tokens
from mmtok.files.plan import TOKENS, plan_files, skip
from mmtok.tokenizer import Tokenizer

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


def encode_images(
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
    for source, target in plan_files(inputs, out, ENDINGS, TOKENS, overwrite):
        try:
            x = read_image(source)
        except (ValueError, OSError) as error:
            failed += skip("encode", source, error)
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


def decode_images(tokenizer: Tokenizer, inputs: list[Path], out: Path, seed: int = 0, overwrite: bool = False) -> int:
    """Writes one PNG a `.mmt` file; returns 0, or 1 when a file could not be decoded (each is named on stderr).

    inputs  files and folders; the token files of a folder keep their relative paths below `out`
    out     an image path for one input file (its ending chooses the format), else a folder
    ValueError or OSError, before anything is written, when nothing matches or an output exists.
    """
    _require_pillow()
    device, failed = _device(tokenizer), 0
    for source, target in plan_files(inputs, out, TOKENS, (".png", *ENDINGS), overwrite):
        try:
            tokens = load_tokens(source, tokenizer)
        except (ValueError, OSError) as error:
            failed += skip("decode", source, error)
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


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("image files need Pillow: pip install pillow, or pip install 'mmtok[train]'") from None


def _device(tokenizer: Tokenizer) -> torch.device:
    return next(tokenizer.parameters()).device
