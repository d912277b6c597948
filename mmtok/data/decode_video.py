"""Video bytes -> upright RGB frames, safely. Caps on pixels, frames and seconds are checked in the header.

Legend: n frames of a file, H W pixels.

`VideoReader` is all that clips are made of. PyAV (FFmpeg inside its wheel) reads every container here;
`mmtok.data.decode_torchcodec` takes its place where torchcodec can be used.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmtok.data.bad import BadSample

EXTENSIONS = ("mp4", "webm", "mkv", "mov", "m4v", "avi", "mpg", "gif")


@dataclass(frozen=True)
class VideoCaps:
    """What a file may hold; beyond these the sample is bad before anything is decoded.

    max_pixels of a frame, max_frames, max_seconds
    """

    max_pixels: int = 8192 * 4320
    max_frames: int = 1_000_000
    max_seconds: float = 4 * 3600.0


DEFAULT_CAPS = VideoCaps()


@dataclass(frozen=True)
class Fit:
    """How frames become pictures of one size: resized as a whole to `scaled` (H, W), then cut at `top`, `left`."""

    scaled: tuple[int, int]
    size: tuple[int, int]
    top: int = 0
    left: int = 0
    flip: bool = False


Plan = Callable[[tuple[int, int]], Fit]  # upright (H, W) of a file -> what to do with its frames


def as_is(size: tuple[int, int]) -> Fit:
    """Frames at their own size."""
    return Fit(size, size)


class VideoReader(Protocol):
    """times: float64 [n], seconds at which frames are shown, rising; rate: mean frames per second."""

    times: NDArray[np.float64]
    rate: float

    def __len__(self) -> int: ...

    def nearest(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Numbers of the frames shown nearest to these times; the earlier of two equally near ones."""

    def frames(self, numbers: Sequence[int], plan: Plan = as_is) -> Tensor:
        """uint8 [3, len(numbers), H, W] of frames by number, which must not fall. Raises BadSample."""


class EncodedVideo:
    """A video file whose packets are listed and whose frames are not decoded. Sound in it is left alone.

    times  float64 [n]: when each frame is shown, exact for variable rates
    rate   frames per second: n - 1 over the time between the first and the last frame
    sound  whether there is a sound track
    """

    def __init__(self, data: bytes | Path, caps: VideoCaps = DEFAULT_CAPS) -> None:
        """data: the file, or its path. Raises BadSample: empty, unsupported, no_video, too_large, truncated."""
        if not data:
            raise BadSample("empty", "0 bytes")
        self._data, self._caps = data, caps
        container, stream = self._open()
        self.sound = bool(container.streams.audio)
        self._base = float(stream.time_base)
        self._pts = self._list(container, stream)
        # opening costs as much as decoding some frames; elsewhere reading to the end changes what a seek finds
        self._opened = (container, stream) if "mp4" in container.format.name else None
        self.times: NDArray[np.float64] = self._pts.astype(np.float64) * self._base
        span = float(self.times[-1] - self.times[0])
        stated = float(stream.average_rate or 0)
        self.rate = (len(self.times) - 1) / span if span > 0 else (stated or 1.0)

    def __len__(self) -> int:
        return len(self.times)

    def nearest(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Numbers of the frames shown nearest to these times; the earlier of two equally near ones."""
        after = np.searchsorted(self.times, seconds).clip(0, len(self) - 1)
        before = (after - 1).clip(0)
        earlier = np.abs(self.times[before] - seconds) <= np.abs(self.times[after] - seconds) + 1e-9
        return np.where(earlier, before, after)

    def frames(self, numbers: Sequence[int], plan: Plan = as_is) -> Tensor:
        """uint8 [3, len(numbers), H, W], upright RGB, of frames by number, which must not fall; repeats are allowed.

        Raises BadSample: corrupt, truncated.
        """
        parts = [torch.from_numpy(picture) for picture in self.pictures(numbers, plan)]
        return torch.stack(parts).permute(3, 0, 1, 2)

    def pictures(self, numbers: Sequence[int], plan: Plan = as_is) -> Iterator[NDArray[np.uint8]]:
        """The same one by one, uint8 [H, W, 3]."""
        wanted, at = self._pts[np.asarray(numbers, dtype=np.int64)], 0
        slack = 1.5 / max(self.rate, 1e-6) / self._base
        before: tuple[int, Any] | None = None
        convert = _Converter(plan)
        for pts, frame in self._decode(int(wanted[0]), frozenset(wanted.tolist())):
            while at < len(wanted) and pts >= wanted[at]:
                earlier = before is not None and wanted[at] - before[0] < pts - wanted[at]
                chosen = before[1] if earlier and before is not None else frame
                yield convert(chosen)
                at += 1
            if at == len(wanted):
                return
            before = (pts, frame)
        while at < len(wanted):
            if before is None or wanted[at] - before[0] > slack:
                raise BadSample("truncated", f"no frame at {wanted[at] * self._base:.2f} s, against the header")
            yield convert(before[1])
            at += 1

    def check(self) -> tuple[int, int]:
        """Decode everything once; the upright (H, W). Raises BadSample."""
        count, size = 0, (0, 0)
        for _, frame in self._decode(int(self._pts[0])):
            if not count:
                size = (frame.width, frame.height) if _turns(frame) % 2 else (frame.height, frame.width)
            count += 1
        if count < len(self) - max(2, len(self) // 100):  # open ends of a cut may hold a frame or two back
            raise BadSample("truncated", f"{count} of {len(self)} frames can be decoded")
        return size

    def _list(self, container: Any, stream: Any) -> NDArray[np.int64]:
        """Timestamps of all frames, from the packets alone."""
        import av

        shown, packets, cap = [], 0, self._caps.max_frames
        try:
            for packet in container.demux(stream):
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is None or not packet.size:
                    continue
                packets += 1
                if packets > cap:
                    raise BadSample("too_large", f"more than {cap} frames")
                if not packet.is_discard:
                    shown.append(stamp)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise BadSample("truncated", str(error)) from None
        if not shown:
            raise BadSample("empty", "no frames")
        # AVI counts ticks of its clock, and matroska nothing
        if "mp4" in container.format.name and packets < stream.frames:
            raise BadSample("truncated", f"{packets} of {stream.frames} frames are there")
        pts = np.unique(np.array(shown, dtype=np.int64))
        seconds = float(pts[-1] - pts[0]) * self._base
        if seconds > self._caps.max_seconds:
            raise BadSample("too_large", f"{seconds:.0f} s, the cap is {self._caps.max_seconds:.0f}")
        return pts

    def _open(self) -> tuple[Any, Any]:
        """The container and its first video stream, checked against the caps, with one decoding thread."""
        import av

        try:
            container = av.open(str(self._data) if isinstance(self._data, Path) else io.BytesIO(self._data))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise BadSample("unsupported", f"not a video of a known format ({error})") from None
        try:
            if not container.streams.video:
                raise BadSample("no_video", "no video stream")
            stream, caps = container.streams.video[0], self._caps
            if stream.codec_context is None or not stream.width * stream.height:
                raise BadSample("corrupt", "the header states no size or an unknown codec")
            if stream.width * stream.height > caps.max_pixels:
                raise BadSample("too_large", f"{stream.width} x {stream.height} pixels, the cap is {caps.max_pixels}")
            if stream.frames > caps.max_frames:
                raise BadSample("too_large", f"{stream.frames} frames, the cap is {caps.max_frames}")
            seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
            if seconds > caps.max_seconds:
                raise BadSample("too_large", f"{seconds:.0f} s, the cap is {caps.max_seconds:.0f} s")
            # a coded picture may be larger than the container says
            stream.codec_context.options = {"max_pixels": str(caps.max_pixels)}
            stream.codec_context.thread_count = 1
        except BaseException:
            container.close()
            raise
        return container, stream

    def _decode(self, start: int, wanted: frozenset[int] | None = None) -> Iterator[tuple[int, Any]]:
        """(timestamp, frame) in order, from a key frame at or before `start`. Raises BadSample: corrupt.

        wanted  timestamps without which a frame may be passed over if no other frame is predicted from it
        """
        import av

        first = int(self._pts[0])
        sought = self._opened is not None or start > first  # an opened one was read to its end
        container, stream = self._opened or self._open()
        self._opened = None
        try:
            if sought:
                try:
                    container.seek(start, stream=stream)
                except av.FFmpegError:  # no index, as in GIF: from the beginning
                    container.close()
                    container, stream = self._open()
                    sought = False
            begun = False
            # only in these containers is a packet's timestamp always that of its frame
            exact = any(name in container.format.name for name in ("mp4", "matroska"))
            for frame in _pass_over(container, stream, wanted) if exact and wanted else container.decode(stream):
                pts = frame.pts if frame.pts is not None else frame.dts
                if pts is None:
                    continue
                if not begun and sought and pts > start:  # the seek went too far
                    container.close()
                    yield from self._decode(first, wanted)
                    return
                begun = True
                yield pts, frame
        except (av.FFmpegError, OSError, ValueError) as error:
            raise BadSample("corrupt", str(error)) from None
        finally:
            container.close()


def _pass_over(container: Any, stream: Any, wanted: frozenset[int]) -> Iterator[Any]:
    """Frames; those not wanted that no other frame needs (most B frames) are not decoded. The others are unchanged."""
    decoder = stream.codec_context
    for packet in container.demux(stream):
        decoder.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        yield from packet.decode()


class _Converter:
    """Frames to RGB by one plan, made for the first of them; the last result is kept, for frames that are held."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.fit = plan, None  # type: tuple[Plan, Fit | None]
        self._last: tuple[Any, NDArray[np.uint8]] | None = None

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        if self._last is not None and self._last[0] is frame:
            return self._last[1]
        from av.video.reformatter import Interpolation

        turns = _turns(frame)
        if self.fit is None:
            self.fit = self.plan((frame.width, frame.height) if turns % 2 else (frame.height, frame.width))
        fit = self.fit
        height, width = fit.scaled[::-1] if turns % 2 else fit.scaled
        how = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        pixels = frame.reformat(width, height, "rgb24", interpolation=how).to_ndarray()
        pixels = np.rot90(pixels, turns)[fit.top : fit.top + fit.size[0], fit.left : fit.left + fit.size[1]]
        picture = np.ascontiguousarray(pixels[:, ::-1] if fit.flip else pixels)
        self._last = (frame, picture)
        return picture


def _turns(frame: Any) -> int:
    """Counterclockwise quarter turns that bring a frame upright."""
    return round((frame.rotation or 0) / 90) % 4
