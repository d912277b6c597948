"""Sound files to token files and back: any rate and format, any length in bounded memory.

Legend: C channels of the codec, n samples of a piece.

A token file states the length and the rate of the original; the codec's own length follows from them, so `decode`
gives back a file of the original's rate and length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mmtok.bitstream import load_tokens, save_tokens
from mmtok.files.plan import TOKENS, plan_files, skip
from mmtok.models.audio.codec import WaveCodec
from mmtok.models.audio.long import decode_long, encode_long
from mmtok.tokenizer import Tokenizer
from mmtok.types import Tokens

ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".g722", ".aiff", ".aif", ".m4a", ".aac")
Channels = Literal["mix", "split"]


def encode_sounds(
    tokenizer: Tokenizer, inputs: list[Path], out: Path, num_quantizers: int | None, overwrite: bool,
    channels: Channels = "mix",
) -> int:
    """See `mmtok.files.encode_files`. With "split", channel c of a.wav goes to a.c.mmt."""
    from mmtok.data.sound_io import SoundReader

    codec = _codec(tokenizer)
    if channels == "split" and codec.channels != 1:
        raise ValueError(f"--channels split: this codec takes {codec.channels} channels at once")
    failed, sounds, written, seconds = 0, 0, 0, 0.0
    for source, target in plan_files(inputs, out, ENDINGS, TOKENS, overwrite):
        try:
            count = SoundReader(source).channels if channels == "split" else 1
            targets = [target.with_suffix(f".{c + 1}.mmt") if count > 1 else target for c in range(count)]
            for number, path in enumerate(targets):
                if path != target and path.exists() and not overwrite:
                    raise ValueError(f"{path} exists: give another --out, or --overwrite")
                tokens = encode_sound(codec, source, num_quantizers, number if count > 1 else None)
                path.parent.mkdir(parents=True, exist_ok=True)
                size = save_tokens(path, tokens)
                length = float(tokens.size[0, 0] / tokens.rate[0])  # type: ignore[index]
                sounds, written, seconds = sounds + 1, written + size, seconds + length
                print(f"{source} -> {path}  {length:.2f} s  {size} bytes  {8 * size / length / 1000:.3f} kbps")
        except _Asked as error:  # a length that this model does not have: more files would not help
            raise ValueError(f"{source}: {error}") from None
        except (ValueError, OSError) as error:
            failed += skip("encode", source, error)
    if sounds > 1:
        print(f"{sounds} sounds, {seconds:.1f} s, {written} bytes, {8 * written / seconds / 1000:.3f} kbps")
    return 1 if failed else 0


def decode_sounds(tokenizer: Tokenizer, inputs: list[Path], out: Path, seed: int, overwrite: bool) -> int:
    """See `mmtok.files.decode_files`."""
    from mmtok.data.sound_io import WRITTEN, write_sound

    codec, failed = _codec(tokenizer), 0
    for source, target in plan_files(inputs, out, TOKENS, WRITTEN, overwrite):
        try:
            tokens = load_tokens(source, tokenizer)
            rate = codec.sample_rate if tokens.rate is None else round(float(tokens.rate[0]))
            target.parent.mkdir(parents=True, exist_ok=True)
            write_sound(target, decode_sound(codec, tokens, seed), rate, codec.channels)
        except (ValueError, OSError) as error:
            failed += skip("decode", source, error)
            continue
        print(f"{source} -> {target}  {int(tokens.size[0, 0]) / rate:.2f} s  {rate} Hz")
    return 1 if failed else 0


def encode_sound(
    codec: WaveCodec, path: Path, num_quantizers: int | None = None, channel: int | None = None
) -> Tokens:
    """Tokens of a sound file, with its own length and rate; `channel` takes one of its channels alone.

    ValueError names the file when it cannot be read or holds no samples.
    """
    from mmtok.data.audio import mix
    from mmtok.data.bad import BadSample
    from mmtok.data.resample import ResampleStream
    from mmtok.data.sound_io import SoundReader

    reader, heard = SoundReader(path), 0
    stream = ResampleStream(reader.rate, codec.sample_rate, codec.channels)

    def pieces() -> Iterator[torch.Tensor]:
        nonlocal heard
        for x in reader.pieces():
            heard += x.shape[1]
            x = mix(x, codec.channels) if channel is None else x[channel : channel + 1]
            yield torch.from_numpy(np.clip(stream.push(x), -1, 1))
        if not heard:
            raise ValueError(f"{path}: holds no samples")
        rest = stream.push(np.zeros((codec.channels, 0), np.float32), last=True)
        yield torch.from_numpy(np.clip(rest, -1, 1))

    _check_depth(codec, num_quantizers)
    try:
        tokens = encode_long(codec, pieces(), num_quantizers)
    except BadSample as error:
        raise ValueError(f"{path}: {error}") from None
    rate = torch.tensor([float(reader.rate)], dtype=torch.float64)
    return replace(tokens, size=torch.tensor([[heard]]), rate=rate)


def decode_sound(codec: WaveCodec, tokens: Tokens, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """float32 [C, n] pieces at the rate of the tokens, together as long as they say."""
    from mmtok.data.resample import ResampleStream

    rate = codec.sample_rate if tokens.rate is None else float(tokens.rate[0])
    left = int(tokens.size[0, 0])
    stream = ResampleStream(codec.sample_rate, rate, codec.channels)
    device = next(codec.parameters()).device
    for x in decode_long(codec, tokens.to(device), seed):
        y = stream.push(x.cpu().numpy())[:, :left]
        left -= y.shape[1]
        yield y
    rest = stream.push(np.zeros((codec.channels, 0), np.float32), last=True)[:, :left]
    yield np.pad(rest, ((0, 0), (0, left - rest.shape[1])))  # rounding twice may lose a sample


class _Asked(ValueError):
    """A wish that this model cannot meet, whatever the file."""


def _check_depth(codec: WaveCodec, num_quantizers: int | None) -> None:
    try:
        codec.keep_for(torch.zeros(1, codec.quantizer.dim, codec.frame_multiple), None, num_quantizers)
    except ValueError as error:
        raise _Asked(str(error)) from None


def _codec(tokenizer: Tokenizer) -> WaveCodec:
    if not isinstance(tokenizer, WaveCodec):
        raise ValueError(f"--model: {type(tokenizer).__name__} is no waveform codec, files cannot be coded with it")
    return tokenizer
