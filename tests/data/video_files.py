"""Video files whose frames can be told apart."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np


def clip(kind="mp4", codec="libx264", frames=20, times=None, turn=0, sound=False, size=(48, 64)):
    """A file whose frame i has grey level 10 i and a red corner (top left); frames at `times` / 100 s."""
    stream, pix = io.BytesIO(), "rgb8" if codec == "gif" else "yuv420p"
    with av.open(stream, "w", format=kind) as container:
        track = container.add_stream(codec, rate=10)
        track.height, track.width, track.pix_fmt = *size, pix
        if turn:
            track.set_display_rotation(turn)
        track.codec_context.time_base = Fraction(1, 100)
        voice = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for i, at in enumerate(times or range(0, 10 * frames, 10)):
            picture = np.full((*size, 3), 10 * (i % 25), np.uint8)
            picture[:16, :16] = [255, 0, 0]
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = at, Fraction(1, 100)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
        if voice is not None:
            for at in range(0, 16000 * frames // 10 // 1024 * 1024, 1024):
                wave = np.sin(np.arange(at, at + 1024) / 5).astype(np.float32)[None]
                block = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
                block.sample_rate, block.pts, block.time_base = 16000, at, Fraction(1, 16000)
                container.mux(voice.encode(block))
            container.mux(voice.encode(None))
    return stream.getvalue()
