"""Media files to token files and back, for `mmtok encode` and `mmtok decode`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmtok.files.images import decode_images, encode_images, read_image, write_image
from mmtok.files.sounds import decode_sounds, encode_sounds
from mmtok.files.videos import decode_videos, encode_videos

if TYPE_CHECKING:
    from mmtok.tokenizer import Tokenizer

__all__ = ["decode_files", "encode_files", "read_image", "write_image"]


def encode_files(
    tokenizer: Tokenizer, inputs: list[Path], out: Path, num_tokens: int | None = None,
    num_quantizers: int | None = None, overwrite: bool = False, channels: Literal["mix", "split"] = "mix",
    target: str | None = None,
) -> int:
    """Writes one `.mmt` a file; returns 0, or 1 when a file could not be read (each is named on stderr).

    inputs    files and folders; the media of a folder keep their relative paths below `out`
    out       a `.mmt` path for one input file, else a folder
    channels  of sounds, for a codec of one channel: "mix" averages them, "split" writes one file a channel
    target    of videos, see `encode` of the video tokenizers: "32dB" or "0.02bpp"
    ValueError or OSError, before anything is written, when nothing matches or an output exists.
    """
    if target is not None and tokenizer.modality != "video":
        raise ValueError("--target: only video tokenizers meet one; use --num-tokens or --num-quantizers")
    if tokenizer.modality == "audio":
        if num_tokens is not None:
            raise ValueError("--num-tokens: an audio codec varies its residual depth; use --num-quantizers")
        return encode_sounds(tokenizer, inputs, out, num_quantizers, overwrite, channels)
    if tokenizer.modality == "video":
        return encode_videos(tokenizer, inputs, out, num_tokens, num_quantizers, overwrite, target)
    return encode_images(tokenizer, inputs, out, num_tokens, num_quantizers, overwrite)


def decode_files(tokenizer: Tokenizer, inputs: list[Path], out: Path, seed: int = 0, overwrite: bool = False) -> int:
    """Writes one media file a `.mmt` file; returns 0, or 1 when one could not be decoded (each is named on stderr).

    inputs  files and folders; the token files of a folder keep their relative paths below `out`
    out     a media path for one input file (its ending chooses the format), else a folder (of PNG, WAV or MP4 files)
    ValueError or OSError, before anything is written, when nothing matches or an output exists.
    """
    if tokenizer.modality == "audio":
        return decode_sounds(tokenizer, inputs, out, seed, overwrite)
    if tokenizer.modality == "video":
        return decode_videos(tokenizer, inputs, out, seed, overwrite)
    return decode_images(tokenizer, inputs, out, seed, overwrite)
