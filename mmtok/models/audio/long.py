"""Coding signals of any length in bounded memory: as a stream where the codec is causal, else in overlapping pieces.

Legend: C channels, n samples, F frames, K codebooks.

A piece is coded together with `context` frames to each side, whose codes are thrown away. Where the codec states its
`reach` (the frames that a frame depends on) that is the context, and codes and samples are those of the whole signal;
otherwise it is a second, which covers the convolutions of all codecs here but not what hears the whole clip (group
norms over time, attention, LSTMs): see docs/audio.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from mmtok.keep import Full, Prefix
from mmtok.models.audio.codec import WaveCodec
from mmtok.models.audio.glm import GLMTokenizer
from mmtok.models.audio.segmented import SegmentedCodec
from mmtok.types import Tokens

PIECE_SECONDS = 10.0


def encode_long(
    codec: WaveCodec, pieces: Iterable[Tensor], num_quantizers: int | None = None, seconds: float = PIECE_SECONDS
) -> Tokens:
    """Tokens of one signal that arrives as float [C, n] in [-1, 1] at the codec's rate; any n.

    ValueError when nothing arrives, and for what `encode` refuses.
    """
    device = next(codec.parameters()).device
    stream = ((piece.to(device)[None], last) for piece, last in _with_last(pieces))
    if codec.causal:
        return _encode_causal(codec, stream, num_quantizers)
    if not _by_pieces(codec):
        return codec.encode(torch.cat([x for x, _ in stream], -1), num_quantizers=num_quantizers)
    context, step = _sizes(codec, codec.encoder, seconds)
    parts: list[Tokens] = []
    held, before, heard = None, 0, 0  # samples that wait; how many of their frames are coded already; samples in all
    for x, last in stream:
        held = x if held is None else torch.cat([held, x], -1)
        heard += x.shape[-1]
        while held.shape[-1] - before * codec.hop >= (step + context) * codec.hop:
            tokens = codec.encode(held[..., : (before + step + context) * codec.hop], num_quantizers=num_quantizers)
            parts.append(_frames(codec, tokens, before, before + step))
            drop = max(0, before + step - context)
            held, before = held[..., drop * codec.hop :], before + step - drop
        if last and (held.shape[-1] > before * codec.hop or not parts):
            tokens = codec.encode(held, num_quantizers=num_quantizers)
            parts.append(_frames(codec, tokens, before, codec.positions((held.shape[-1],))[0]))
    return _joined(codec, parts, heard)


def decode_long(codec: WaveCodec, tokens: Tokens, seed: int = 0, seconds: float = PIECE_SECONDS) -> Iterator[Tensor]:
    """float32 [C, n] pieces of the signal of one item, at the codec's rate; together what `decode` gives."""
    length = codec.media_size(tuple(tokens.size[0].tolist()), _rate(tokens))[0]
    frames = codec.positions((length,))[0]
    context, step = _sizes(codec, codec.decoder, seconds)
    if frames <= step + 2 * context or not (codec.causal or _by_pieces(codec)):
        yield codec.decode(tokens, seed=seed)[0]
        return
    state = codec.stream_state(1) if codec.causal else None
    for at in range(0, frames, step):
        end = min(at + step, frames)
        final = end == frames
        if state is not None:
            samples = (length if final else end * codec.hop) - at * codec.hop
            x, state = codec.decode_chunk(_sized(codec, _frames(codec, tokens, at, end), samples), state, last=final)
            yield x[0]
            continue
        first, stop = max(0, at - context), min(frames, end + context)
        samples = min(length, stop * codec.hop) - first * codec.hop
        x = codec.decode(_sized(codec, _frames(codec, tokens, first, stop), samples), seed=seed)[0]
        yield x[:, (at - first) * codec.hop : min(length, end * codec.hop) - first * codec.hop]


def _encode_causal(codec: WaveCodec, stream: Iterable[tuple[Tensor, bool]], num_quantizers: int | None) -> Tokens:
    state = codec.stream_state(1, num_quantizers)
    parts, heard = [], 0
    for x, last in stream:
        heard += x.shape[-1]
        tokens, state = codec.encode_chunk(x, state, last=last)
        parts.append(tokens)
    return _joined(codec, parts, heard)


def _by_pieces(codec: WaveCodec) -> bool:
    """Whether frames of a piece are frames of the whole: no segments of its own, no masks over time."""
    return not isinstance(codec, SegmentedCodec | GLMTokenizer) and codec.coding in (Full(), Prefix(1))


def _sizes(codec: WaveCodec, network: torch.nn.Module, seconds: float) -> tuple[int, int]:
    """(context, step) in frames, multiples of `frame_multiple`."""
    second = codec.sample_rate / codec.hop
    reach = getattr(network, "reach", None)
    unit = codec.frame_multiple
    context = -(-int(second if reach is None else reach) // unit) * unit
    return context, max(1, int(seconds * second) // unit) * unit


def _frames(codec: WaveCodec, tokens: Tokens, start: int, stop: int) -> Tokens:
    """The codes of frames start..stop; coarser grids are cut in proportion."""
    total = codec.positions(codec.media_size(tuple(tokens.size[0].tolist()), _rate(tokens)))[0]
    cuts = [slice(start * n // total, stop * n // total) for n in (grid.shape[-1] for grid in tokens.grids)]
    grids = tuple(grid[..., cut] for grid, cut in zip(tokens.grids, cuts, strict=True))
    keep = tuple(
        mask if mask.shape[-1] == 1 else mask[..., cut] for mask, cut in zip(tokens.keep, cuts, strict=True)
    )
    return replace(tokens, grids=grids, keep=keep)


def _sized(codec: WaveCodec, tokens: Tokens, samples: int) -> Tokens:
    rate = torch.full((1,), float(codec.sample_rate), dtype=torch.float64)
    return replace(tokens, size=torch.tensor([[samples]]), rate=rate)


def _joined(codec: WaveCodec, parts: list[Tokens], samples: int) -> Tokens:
    """Parts laid end to end."""
    if not samples:
        raise ValueError("encode: the clip holds no samples")
    grids = tuple(torch.cat(same, -1) for same in zip(*(part.grids for part in parts), strict=True))
    # one width of mask for all parts: a part of no frames has an empty one
    keep = tuple(
        torch.cat([m.expand(*m.shape[:-1], g.shape[-1]) for m, g in same], -1)
        for same in zip(*(tuple(zip(part.keep, part.grids, strict=True)) for part in parts), strict=True)
    )
    return _sized(codec, replace(parts[0], grids=grids, keep=keep), samples)


def _rate(tokens: Tokens) -> float | None:
    return None if tokens.rate is None else float(tokens.rate[0])


def _with_last(pieces: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """(piece, whether it is the last)."""
    previous = None
    for piece in pieces:
        if previous is not None:
            yield previous, False
        previous = piece
    if previous is None:
        raise ValueError("encode: the clip holds no samples")
    yield previous, True
