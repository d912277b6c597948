"""`mmtok encode` and `mmtok decode` on video files: containers, sizes, lengths, streaming, faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmtok.bitstream import load_tokens
from mmtok.cli import main
from mmtok.data.clips import encode_clip
from mmtok.data.decode_video import EncodedVideo
from mmtok.files.videos import decode_video, encode_video
from mmtok.hub import load, save
from mmtok.keep import BlockDepth

NETWORK = {
    "parts": {"class_path": "mmtok.nn.video_parts.CosmosParts", "init_args": {"patch": 4, "time_window": 2}},
    "z_channels": 4, "channels": 8, "channel_mult": [1, 1], "num_res_blocks": 1, "strides": [[1, 2]],
}  # fmt: skip
VQ = {"class_path": "mmtok.quantizers.vq.VQ", "init_args": {"dim": 4, "codebook_size": 16}}
CONFIG = {
    "class_path": "mmtok.models.video.conv.ConvVideoTokenizer",
    "init_args": {
        "encoder": {"class_path": "mmtok.nn.conv_video.ConvEncoder3d", "init_args": NETWORK},
        "quantizer": {"class_path": "mmtok.quantizers.residual.Residual", "init_args": {"quantizers": [VQ, VQ, VQ]}},
        "decoder": {"class_path": "mmtok.nn.conv_video.ConvDecoder3d", "init_args": NETWORK},
        "size": [9, 32, 32], "rate": 12.0,
        "tail": {
            "class_path": "mmtok.taildrop.UniformTail",
            "init_args": {"coding": {"class_path": "mmtok.keep.BlockDepth"}},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from mmtok.hub import build

    torch.manual_seed(0)
    return save(build(CONFIG), tmp_path_factory.mktemp("model") / "video")


def film(path, frames, height, width, rate):
    noise = np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), np.uint8) // 4 + 80
    path.write_bytes(encode_clip(noise, [t / rate for t in range(frames)], rate)[0])


def test_files_come_back_with_size_length_and_rate(folder, tmp_path, capsys):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, what in {"a.mp4": (41, 40, 56, 12.5), "deep/b.mp4": (1, 34, 30, 10.0)}.items():
        film(tmp_path / "in" / name, *what)
    (tmp_path / "in" / "bad.mp4").write_bytes(b"nothing")
    assert main(["encode", str(tmp_path / "in"), "-o", str(tmp_path / "codes"), "--model", str(folder)]) == 1
    assert "bad.mp4" in capsys.readouterr().err
    assert main(["decode", str(tmp_path / "codes"), "-o", str(tmp_path / "back"), "--model", str(folder)]) == 0
    for name, (frames, height, width, rate) in {"a": (41, 40, 56, 12.5), "deep/b": (1, 34, 30, 10.0)}.items():
        video = EncodedVideo(tmp_path / "back" / f"{name}.mp4")
        assert len(video) == frames and video.check() == (height, width)
        assert frames == 1 or video.rate == pytest.approx(rate, rel=1e-3)
    assert main(["encode", str(tmp_path / "in/a.mp4"), "-o", str(tmp_path / "a.mmt"), "--model", str(folder),
                 "--num-tokens", "1"]) == 0  # fmt: skip
    assert (tmp_path / "a.mmt").stat().st_size < (tmp_path / "codes" / "a.mmt").stat().st_size
    assert main(["decode", str(tmp_path / "a.mmt"), "-o", str(tmp_path / "a.webm"), "--model", str(folder)]) == 0
    assert len(EncodedVideo(tmp_path / "a.webm")) == 41


def test_streamed_files_equal_the_whole_video(folder, tmp_path):
    tokenizer = load(folder)
    assert tokenizer.coding == BlockDepth()
    film(tmp_path / "a.mp4", 39, 40, 56, 12.0)
    video = EncodedVideo(tmp_path / "a.mp4")
    x = video.frames(range(39))[None].float() / 127.5 - 1
    for depth in (None, 2):
        whole, streamed = tokenizer.encode(x, num_tokens=depth), encode_video(tokenizer, tmp_path / "a.mp4", depth)
        assert torch.equal(whole.grids[0], streamed.grids[0]) and streamed.size.tolist() == [[39, 40, 56]]
        assert whole.bits.tolist() == streamed.bits.tolist()
        pictures = np.stack(list(decode_video(tokenizer, streamed)))
        expected = ((tokenizer.decode(whole)[0] + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
        assert pictures.shape == expected.shape and np.abs(pictures.astype(int) - expected).max() <= 1


def test_every_block_may_have_its_own_depth(folder, tmp_path):
    from mmtok.bitstream import save_tokens

    tokenizer = load(folder)
    x = torch.rand(2, 3, 9, 32, 32) * 2 - 1
    depths = torch.tensor([[1, 3, 2], [2, 1, 3]])
    tokens = tokenizer.encode(x, num_tokens=depths)
    assert tokens.num_sent.tolist() == [16 * 6, 16 * 6]
    for i in range(2):
        save_tokens(tmp_path / "x.mmt", tokens[i])
        back = load_tokens(tmp_path / "x.mmt", tokenizer)
        assert torch.equal(back.keep[0].expand_as(back.grids[0]), tokens[i].keep[0].expand_as(back.grids[0]))
        assert torch.allclose(tokenizer.decode(back), tokenizer.decode(tokens)[i : i + 1], atol=1e-4)
    early = x.clone()
    early[:, :, 5:] = 0
    assert torch.equal(tokenizer.encode(early).grids[0][:, :, :2], tokenizer.encode(x).grids[0][:, :, :2])


def test_a_rate_is_kept_and_a_quality_reached_per_block(folder, tmp_path, capsys):
    film(tmp_path / "a.mp4", 21, 40, 56, 12.0)
    tokenizer, source = load(folder), str(tmp_path / "a.mp4")
    x = EncodedVideo(tmp_path / "a.mp4").frames(range(21))[None].float() / 127.5 - 1
    for wish in ("0.15bpp", "13dB"):
        out = tmp_path / f"{wish}.mmt"
        assert main(["encode", source, "-o", str(out), "--model", str(folder), "--target", wish]) == 0
        found = load_tokens(out, tokenizer)
        assert torch.equal(found.grids[0], tokenizer.encode(x, target=wish).grids[0])
        if wish.endswith("bpp"):
            assert float(found.bpp) <= 0.15 and found.rate.tolist() == [12.0]
    for wish, code in (("good", 2), ("0.001bpp", 1)):
        run = ["encode", source, "-o", str(tmp_path / "b.mmt"), "--model", str(folder), "--target", wish]
        assert main(run) == code and not (tmp_path / "b.mmt").exists()
        assert "target: " in capsys.readouterr().err


def test_mistakes_are_one_line(folder, tmp_path, capsys):
    film(tmp_path / "a.mp4", 5, 32, 32, 10.0)
    (tmp_path / "a.mmt").write_bytes(b"old")
    assert main(["encode", str(tmp_path / "a.mp4"), "-o", str(tmp_path / "a.mmt"), "--model", str(folder)]) == 2
    assert "exists" in capsys.readouterr().err
    code = main(["encode", str(tmp_path / "a.mp4"), "-o", str(tmp_path / "b.mmt"), "--model", str(folder),
                 "--num-tokens", "9"])  # fmt: skip
    assert code and "num_tokens" in capsys.readouterr().err and not (tmp_path / "b.mmt").exists()
