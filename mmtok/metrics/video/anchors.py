"""Video codecs to measure beside: x264, x265 and SVT-AV1 by PyAV, at their own whole file sizes.

Legend: T frames, H W pixels.

Files are as small as these encoders make them: elementary streams (Annex B, IVF for AV1) instead of MP4, whose tables
alone exceed what a tokenizer spends on a small clip; x264's and x265's notes about themselves are left out. One key
frame a clip, 4:2:0. `scale` 2: coded at half size and enlarged again, to reach the rates of tokenizers.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtok.data.clips import X264

SWEEPS = {
    "x264": ((2, 48), (2, 40), (2, 32), (1, 48), (1, 40), (1, 32), (1, 24)),
    "x265": ((2, 48), (2, 40), (2, 32), (1, 48), (1, 40), (1, 32), (1, 24)),
    "svtav1": ((2, 60), (2, 48), (2, 36), (1, 60), (1, 48), (1, 36), (1, 24)),
}
TITLES = {"x264": "x264", "x265": "x265", "svtav1": "SVT-AV1"}
_ENCODERS = {"x264": "libx264", "x265": "libx265", "svtav1": "libsvtav1"}
_FORMATS = {"x264": "h264", "x265": "hevc", "svtav1": "ivf"}


@dataclass(frozen=True)
class VideoSetting:
    """One way to write a clip: a codec at a constant rate factor, after reduction by `scale`."""

    codec: str
    crf: int
    scale: int = 1

    @property
    def series(self) -> str:
        return TITLES[self.codec]

    @property
    def label(self) -> str:
        """For people: "x264 crf 40", "SVT-AV1 crf 48 at 1/2"."""
        return f"{self.series} crf {self.crf}" + (f" at 1/{self.scale}" if self.scale > 1 else "")


def settings(codecs: tuple[str, ...] = ("x264", "x265", "svtav1")) -> list[VideoSetting]:
    """The sweep of these codecs; ValueError for an unknown one or one this FFmpeg cannot write."""
    import av

    for name in codecs:
        if name not in SWEEPS:
            raise ValueError(f'codecs: expected some of {", ".join(SWEEPS)}, got "{name}"')
        if _ENCODERS[name] not in av.codecs_available:
            raise ValueError(f'codecs: this PyAV has no {_ENCODERS[name]}: pip install -U av, or leave "{name}" out')
    return [VideoSetting(name, crf, scale) for name in codecs for scale, crf in SWEEPS[name]]


def encode_clip(clip: Tensor, rate: float, setting: VideoSetting) -> bytes:
    """The file of a uint8 clip [3, T, H, W] at `rate` frames per second."""
    import av

    os.environ.setdefault("SVT_LOG", "-1")  # it prints its configuration for every clip
    frames = clip.permute(1, 2, 3, 0).contiguous().cpu().numpy()
    height, width = (max(2, round(n / setting.scale / 2) * 2) for n in frames.shape[1:3])
    options = {
        "x264": {"preset": "medium", "x264-params": f"{X264}:keyint={len(frames)}"},
        "x265": {"preset": "medium", "x265-params": "log-level=none:info=0:keyint=-1:pools=none:frame-threads=1"},
        "svtav1": {"preset": "8", "svtav1-params": "keyint=-1:lp=1"},
    }[setting.codec]
    stream = io.BytesIO()
    with av.open(stream, "w", format=_FORMATS[setting.codec], options={"fflags": "+bitexact"}) as container:
        track: Any = container.add_stream(_ENCODERS[setting.codec], rate=max(1, round(rate)))
        track.height, track.width, track.pix_fmt = height, width, "yuv420p"
        track.codec_context.thread_count = 1
        track.options = {**options, "crf": str(setting.crf)}
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(width, height, "yuv420p", **_how())
            frame.pts = number
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return _without_notes(stream.getvalue()) if setting.codec == "x264" else stream.getvalue()


def decode_clip(data: bytes, codec: str, height: int, width: int) -> Tensor:
    """uint8 [3, T, height, width] of a file, enlarged when it holds a reduced clip."""
    import av

    with av.open(io.BytesIO(data), format=_FORMATS[codec]) as container:
        pictures = [
            frame.reformat(width, height, "rgb24", **_how()).to_ndarray()
            for frame in container.decode(video=0)  # type: ignore[union-attr]
        ]
    return torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2)


def through(clip: Tensor, rate: float, setting: VideoSetting) -> tuple[Tensor, int]:
    """What comes back of a uint8 clip [3, T, H, W], and the bytes of its file."""
    data = encode_clip(clip, rate, setting)
    back = decode_clip(data, setting.codec, *clip.shape[2:])
    if back.shape != clip.shape:
        raise ValueError(f"codecs: {setting.label} gave back {back.shape[1]} of {clip.shape[1]} frames")
    return back.to(clip.device), len(data)


def _how() -> dict[str, Any]:
    from av.video.reformatter import Interpolation

    return {"interpolation": Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT}


def _without_notes(stream: bytes) -> bytes:
    """An Annex B stream without its SEI units (type 6): the 600 bytes in which x264 lists its options."""
    units = re.split(b"\x00\x00\x00\x01|\x00\x00\x01", stream)[1:]
    return b"".join(b"\x00\x00\x01" + unit for unit in units if unit[0] & 31 != 6)
