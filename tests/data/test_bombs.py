"""Files that claim, or hold, far more than they should: refused from their headers, at once, in little memory."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from mmtok.data import check
from mmtok.data.check import check_shards, scan_shard
from mmtok.data.decode import BadSample, EncodedImage
from mmtok.data.decode_audio import AudioCaps, EncodedAudio
from mmtok.data.decode_video import EncodedVideo
from mmtok.data.index import Index, make_shard
from mmtok.data.reader import Reader

MB = 1 << 20


def declared(size: int, name: str = "a.jpg") -> bytes:
    """A tar header of a member of this size, without the member."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def peak(function: Callable[[], object]) -> int:
    """The most bytes Python held at once during a call, above what it held before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_member_that_declares_ten_gigabytes_is_cut_off_by_the_end_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(declared(10 << 30) + bytes(2048))
    assert peak(lambda: scan_shard(tmp_path / "s.tar")) < 20 * MB
    shard, bad, problems = scan_shard(tmp_path / "s.tar")
    assert not len(shard) and not bad and any("cut off" in problem for problem in problems)


def hole(path: Path, members: dict[str, int]) -> Path:
    """A tar of members "a.<ext>" of these sizes whose contents take no space on the disk."""
    with open(path, "wb") as file:
        for ext, size in members.items():
            file.write(declared(size, f"a.{ext}"))
            file.truncate(file.tell() + size)
            file.seek(0, os.SEEK_END)
        file.write(bytes(1024))
    return path


def test_a_huge_member_is_not_read_when_shards_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_MEMBER_BYTES", 30 * MB)  # 256 MB; the hash of the shard takes its time
    path, found = hole(tmp_path / "s.tar", {"jpg": 40 * MB}), []
    assert peak(lambda: found.append(scan_shard(path))) < 20 * MB
    ((shard, bad, _),) = found
    assert len(shard) == 1 and bad[0][0] == "a" and bad[0][1].startswith("too_large")


@pytest.mark.parametrize("members", [{"jpg": 300 * MB}, {"jpg": 200 * MB, "png": 200 * MB, "webp": 200 * MB}])
def test_neither_a_huge_member_nor_a_huge_sample_is_read(tmp_path: Path, members: dict[str, int]) -> None:
    path, row, at = hole(tmp_path / "s.tar", members), {}, 512
    for ext, size in members.items():
        row[ext], at = (at, size), at + size + 512
    shard = make_shard(str(path), path.stat().st_size, "0", ["a"], [row], [(1, 1)])
    reader = Reader(Index([shard]))  # by default 256 MB a member and 512 MB a sample

    def read() -> None:
        with pytest.raises(BadSample, match="too_large"):
            reader.read(0, tuple(members))

    assert peak(read) < MB


def test_a_compressed_bomb_under_the_name_of_a_tar_is_not_unpacked(tmp_path: Path) -> None:
    bomb = tmp_path / "s.tar"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(declared(100 * MB))
        for _ in range(100):
            file.write(bytes(MB))
    assert bomb.stat().st_size < 2 * MB
    assert peak(lambda: check_shards(tmp_path, progress=False)) < 20 * MB
    assert any("cannot be read" in problem for problem in check_shards(tmp_path, progress=False).problems)


def png(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return head + struct.pack(">I", 100) + b"IDAT" + bytes(104)


def flac(seconds: int) -> bytes:
    """One second of sound whose STREAMINFO claims more."""
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(16000), 16000, format="FLAC")
    data = bytearray(stream.getvalue())
    data[21] = data[21] & 0xF0 | (seconds * 16000) >> 32
    data[22:26] = struct.pack(">I", seconds * 16000 & 0xFFFFFFFF)
    return bytes(data)


def mp4(seconds: int) -> bytes:
    """Four frames that are shown over this time."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as out:
        track = out.add_stream("mpeg4", rate=25)
        track.width = track.height = 64
        for n in range(4):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            frame.pts = n * seconds * 25 // 3
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "read"),
    [
        (png(50_000, 50_000), EncodedImage), (flac(24 * 3600), lambda data: EncodedAudio(data, "flac")),
        (mp4(24 * 3600), EncodedVideo),
    ],
    ids=["picture of 2.5 Gpx", "sound of 24 h", "video of 24 h"],
)  # fmt: skip
def test_claims_are_refused_from_the_header_at_once(data: bytes, read: Callable[[bytes], object]) -> None:
    spent = []
    for _ in range(3):
        begun = time.process_time()
        with pytest.raises(BadSample) as error:
            read(data)
        spent.append(time.process_time() - begun)
        assert error.value.reason == "too_large"
    assert min(spent) < 0.05


def test_sound_without_a_stated_length_is_decoded_up_to_the_cap() -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format="matroska", options={"live": "1"}) as out:
        track = out.add_stream("aac", rate=16000, layout="mono")
        for n in range(600):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            block.sample_rate, block.pts = 16000, 1024 * n
            out.mux(track.encode(block))
        out.mux(track.encode(None))
    with pytest.raises(BadSample, match="too_large: 2 s, the cap is 2"):  # of 38 s
        EncodedAudio(stream.getvalue(), "m4a", AudioCaps(max_seconds=2))
