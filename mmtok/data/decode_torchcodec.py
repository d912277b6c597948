"""Frames of a video and stretches of its sound by torchcodec, where the FFmpeg it needs is really there.

Legend: n frames asked for, H W pixels, C channels.

torchcodec imports without FFmpeg's libraries, or with a version it does not know, and fails on the first file; so
`usable` opens one. Headers, caps and timestamps stay PyAV's, which lists packets without decoding: both readers give
the same frames for the same numbers, and differ in rounding of colours and resizing alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmtok.data.bad import BadSample
from mmtok.data.decode_ffmpeg import LEAD
from mmtok.data.decode_video import DEFAULT_CAPS, EncodedVideo, Fit, Plan, VideoCaps, VideoReader, as_is

GROUP = 16  # frames that are decoded at their full size at once


def open_video(data: bytes | Path, caps: VideoCaps = DEFAULT_CAPS) -> VideoReader:
    """The fastest reader of this machine. Raises BadSample."""
    return TorchcodecVideo(data, caps) if usable() else EncodedVideo(data, caps)


@functools.cache
def usable() -> bool:
    """Whether torchcodec can decode a file here; found out once a process."""
    from mmtok.data.clips import encode_clip

    try:
        from torchcodec.decoders import VideoDecoder

        file, (height, width) = encode_clip([np.zeros((16, 16, 3), np.uint8)] * 2, [0.0, 0.1], 10.0)
        return tuple(VideoDecoder(file).get_frame_at(1).data.shape) == (3, height, width)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the other reader is there
        return False


class TorchcodecVideo(EncodedVideo):
    """`EncodedVideo` whose `frames` are decoded by torchcodec, one thread."""

    def frames(self, numbers: Sequence[int], plan: Plan = as_is) -> Tensor:
        """uint8 [3, n, H, W], as `EncodedVideo.frames`. Raises BadSample: corrupt, truncated."""
        from torchcodec.decoders import VideoDecoder

        # half a tick behind its timestamp a frame is shown for certain
        seconds = (self.times[np.asarray(numbers, dtype=np.int64)] + self._base / 2).tolist()
        parts: list[Tensor] = []
        fit: Fit | None = None
        try:
            decoder = VideoDecoder(self._data if isinstance(self._data, bytes) else str(self._data))
            for start in range(0, len(seconds), GROUP):
                batch = decoder.get_frames_played_at(seconds[start : start + GROUP])
                late = np.abs(batch.pts_seconds.numpy() - self.times[numbers[start : start + GROUP]])
                if late.max() > 1.5 / max(self.rate, 1e-6):
                    raise BadSample("truncated", f"no frame at {seconds[start]:.2f} s, against the header")
                fit = fit or plan((batch.data.shape[2], batch.data.shape[3]))
                parts.append(_pictures(batch.data, fit))
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise BadSample("corrupt", " ".join(str(error).split())[:200]) from None
        return torch.cat(parts).transpose(0, 1)


def read_sound(data: bytes, rate: int, start: int, count: int) -> NDArray[np.float32]:
    """float32 [C, count] of the first audio stream from sample `start` on, less at the end. Raises BadSample: corrupt.

    rate  Hz of the stream
    """
    from torchcodec.decoders import AudioDecoder

    first = max(0, start - LEAD)
    try:
        samples = AudioDecoder(data).get_samples_played_in_range(first / rate, (start + count) / rate)
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise BadSample("corrupt", " ".join(str(error).split())[:200]) from None
    skipped = start - round(samples.pts_seconds * rate)
    if skipped < 0:
        raise BadSample("corrupt", f"no sample at {start / rate:.2f} s")
    return samples.data[:, skipped : skipped + count].numpy()


def _pictures(frames: Tensor, fit: Fit) -> Tensor:
    """uint8 [n, 3, H, W] resized, cut and mirrored as `fit` says."""
    if tuple(frames.shape[2:]) != fit.scaled:
        frames = F.interpolate(frames, fit.scaled, mode="bicubic", antialias=True)
    frames = frames[..., fit.top : fit.top + fit.size[0], fit.left : fit.left + fit.size[1]]
    return (frames.flip(-1) if fit.flip else frames).contiguous()
