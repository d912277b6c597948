"""Video files to token files and back, a chunk of frames at a time, so that memory does not grow with the length.

Legend: T frames, H W pixels.

A token file states the frames, the size and the frames per second of the original, so `decode` gives back a file of
the same. Causal models stream; the others, and models whose streams cannot be laid end to end, take the whole video.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmtok.bitstream import load_tokens, save_tokens
from mmtok.files.plan import TOKENS, plan_files, skip
from mmtok.keep import BlockDepth, Full
from mmtok.models.video.conv import ConvVideoTokenizer
from mmtok.models.video.lengths import read_target
from mmtok.tokenizer import Tokenizer
from mmtok.types import Tokens

ENDINGS = (".mp4", ".webm", ".mkv", ".mov", ".m4v", ".avi", ".mpg", ".gif")
WRITTEN = (".mp4", ".mkv", ".webm", ".mov", ".gif")
CHUNK = 16  # frames, at least; rounded up to whole blocks


def encode_videos(
    tokenizer: Tokenizer, inputs: list[Path], out: Path, num_tokens: int | None, num_quantizers: int | None,
    overwrite: bool, wanted: str | None = None,
) -> int:
    """See `mmtok.files.encode_files`; `wanted` is its target. Sound is not coded."""
    _require_av()
    if wanted is not None:
        read_target(wanted)  # a mistake in it is not one of the files
    failed, videos, written, seconds = 0, 0, 0, 0.0
    for source, target in plan_files(inputs, out, ENDINGS, TOKENS, overwrite):
        try:
            tokens = encode_video(tokenizer, source, num_tokens, num_quantizers, wanted)
        except (ValueError, OSError) as error:
            failed += skip("encode", source, error)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        size, (frames, height, width) = save_tokens(target, tokens), tokens.size[0].tolist()
        length = frames / float(tokens.rate[0])  # type: ignore[index]
        videos, written, seconds = videos + 1, written + size, seconds + length
        print(
            f"{source} -> {target}  {width}x{height}  {frames} frames  {length:.2f} s  {size} bytes"
            f"  {8 * size / length / 1000:.2f} kbps"
        )
    if videos > 1:
        print(f"{videos} videos, {seconds:.1f} s, {written} bytes, {8 * written / seconds / 1000:.2f} kbps")
    return 1 if failed else 0


def decode_videos(tokenizer: Tokenizer, inputs: list[Path], out: Path, seed: int, overwrite: bool) -> int:
    """See `mmtok.files.decode_files`."""
    _require_av()
    failed = 0
    for source, target in plan_files(inputs, out, TOKENS, WRITTEN, overwrite):
        try:
            tokens = load_tokens(source, tokenizer)
            rate = 25.0 if tokens.rate is None else float(tokens.rate[0])
            target.parent.mkdir(parents=True, exist_ok=True)
            write_video(target, decode_video(tokenizer, tokens, seed), rate)
        except (ValueError, OSError) as error:
            failed += skip("decode", source, error)
            continue
        frames, height, width = tokens.size[0].tolist()
        print(f"{source} -> {target}  {width}x{height}  {frames} frames at {rate:g} fps")
    return 1 if failed else 0


def encode_video(
    tokenizer: Tokenizer, path: Path, num_tokens: int | None = None, num_quantizers: int | None = None,
    target: str | None = None,
) -> Tokens:
    """Tokens of a video file at its own size, with all its frames and its mean rate. With a target it is coded whole.

    ValueError names the file when it cannot be read or the model has no such length.
    """
    from mmtok.data.bad import BadSample
    from mmtok.data.decode_video import EncodedVideo

    try:
        video = EncodedVideo(path)
        pictures = video.pictures(range(len(video)))
        device = next(tokenizer.parameters()).device
        rate = torch.tensor([video.rate], dtype=torch.float64)
        if target is not None:
            x = _to_clip(pictures, len(video), device)
            return replace(tokenizer.encode(x, num_tokens=num_tokens, target=target), rate=rate)  # type: ignore[arg-type]
        if not _streams(tokenizer) or num_quantizers is not None:
            x = _to_clip(pictures, len(video), device)
            return replace(tokenizer.encode(x, num_tokens=num_tokens, num_quantizers=num_quantizers), rate=rate)
        return replace(_encode_stream(tokenizer, pictures, len(video), num_tokens, device), rate=rate)
    except (BadSample, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def decode_video(tokenizer: Tokenizer, tokens: Tokens, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """uint8 [H, W, 3] pictures in order."""
    tokens = tokens.to(next(tokenizer.parameters()).device)
    if not _streams(tokenizer):
        yield from _to_pictures(tokenizer.decode(tokens, seed=seed))
        return
    assert isinstance(tokenizer, ConvVideoTokenizer)
    grid, step, state = tokens.grids[0], -(-CHUNK // tokenizer.stride[0]), tokenizer.stream_state()
    total, height, width = tokens.size[0].tolist()
    told, kept = 0, tokens.keep[0].expand_as(grid)
    for start in range(0, grid.shape[2], step):
        end = min(start + step, grid.shape[2])
        frames = min(total, tokenizer._frames(end)) - told
        told += frames
        size = torch.tensor([[frames, height, width]])
        part = grid[:, :, start:end]
        keep = (kept[:, :, start:end],)
        x, state = tokenizer.decode_chunk(
            replace(tokens, grids=(part,), keep=keep, size=size), state, end == grid.shape[2]
        )
        yield from _to_pictures(x)


def write_video(path: Path, pictures: Iterator[NDArray[np.uint8]], rate: float) -> None:
    """Writes pictures uint8 [H, W, 3] in the format of the file's ending; replaces an existing file at
    once.

    H.264 (VP9 in WebM) at nearly lossless quality; 4:4:4 where a side is odd, as 4:2:0 has none.
    """
    import av

    ending = path.suffix.lower()
    codec = {".webm": "libvpx-vp9", ".gif": "gif"}.get(ending, "libx264")
    options = {"libvpx-vp9": {"crf": "15", "b": "0"}, "libx264": {"crf": "12", "x264-params": "log-level=none"}}
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with av.open(str(temporary), "w") as container:
            track: Any = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
            for number, picture in enumerate(pictures):
                if not number:
                    track.height, track.width = picture.shape[:2]
                    odd = picture.shape[0] % 2 or picture.shape[1] % 2
                    track.pix_fmt = "rgb8" if codec == "gif" else "yuv444p" if odd else "yuv420p"
                    track.options = options.get(codec, {})
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts = number
                frame.time_base = 1 / Fraction(rate).limit_denominator(1001)
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
        os.replace(temporary, path)
    except av.FFmpegError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _encode_stream(
    tokenizer: Tokenizer, pictures: Iterator[NDArray[np.uint8]], total: int, num_tokens: int | None,
    device: torch.device,
) -> Tokens:
    assert isinstance(tokenizer, ConvVideoTokenizer)
    step = -(-CHUNK // tokenizer.stride[0]) * tokenizer.stride[0]
    state, grids, masks, at = tokenizer.stream_state(1, num_tokens), [], [], 0
    tokens: Tokens | None = None
    while at < total:
        count = min(step, total - at)
        x = _to_clip(pictures, count, device)
        at += count
        tokens, state = tokenizer.encode_chunk(x, state, at == total)
        grids.append(tokens.grids[0])
        masks.append(tokens.keep[0].expand_as(tokens.grids[0]))
        size = torch.tensor([[total, *x.shape[3:]]])
    assert tokens is not None
    return replace(tokens, grids=(torch.cat(grids, 2),), keep=(torch.cat(masks, 2),), size=size)


def _streams(tokenizer: Tokenizer) -> bool:
    """Whether chunks of tokens, laid end to end along time, are those of the whole."""
    return isinstance(tokenizer, ConvVideoTokenizer) and tokenizer.causal and tokenizer.coding in (Full(), BlockDepth())


def _to_clip(pictures: Iterator[NDArray[np.uint8]], count: int, device: torch.device) -> Tensor:
    """float32 [1, 3, count, H, W] in [-1, 1] of the next pictures."""
    from mmtok.data.decode import to_float

    frames = torch.from_numpy(np.stack([next(pictures) for _ in range(count)]))
    return to_float(frames.permute(3, 0, 1, 2)[None].contiguous().to(device))


def _to_pictures(x: Tensor) -> Iterator[NDArray[np.uint8]]:
    pixels = ((x[0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    yield from pixels.permute(1, 2, 3, 0).cpu().numpy()


def _require_av() -> None:
    try:
        import av  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("video files need PyAV: pip install av, or pip install 'mmtok[train]'") from None
