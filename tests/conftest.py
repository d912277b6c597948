"""Fixtures shared by several folders: toy shards, photographs, a small saved tokenizer, fresh processes."""

import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "training"))


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    from training_toys import write_shards

    return write_shards(tmp_path_factory.mktemp("toy") / "shards")


@pytest.fixture(scope="session")
def audio_shards(tmp_path_factory):
    """Folder of two shards with eight prompts of two speakers, 16 kHz, 2 to 4 s each."""
    from mmtok.data.audio_samples import OWN
    from mmtok.data.write import make_shards

    root = tmp_path_factory.mktemp("audio")
    names = [path for voice in ("en_allison", "fr_june") for path in sorted((OWN / "train" / voice).iterdir())[:4]]
    lines = [f"path,text\n{names[0]},one\n", *(f"{name},more\n" for name in names[1:])]
    (root / "clips.csv").write_text("".join(lines))
    make_shards(str(root / "clips.csv"), root / "shards", samples_per_shard=4, progress=False, root=OWN)
    return root / "shards"


@pytest.fixture(scope="session")
def video_shards(tmp_path_factory):
    """Folder of two shards with four clips of 24 moving frames each, 48 x 64 px at 12 fps."""
    from mmtok.data.clips import encode_clip
    from mmtok.data.write import make_shards

    root = tmp_path_factory.mktemp("video")
    (root / "in").mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        scene = np.asarray(Image.fromarray(noise).resize((96, 80), Image.Resampling.BICUBIC))
        pictures = [scene[t : t + 48, t : t + 64] for t in range(24)]
        (root / "in" / f"v{number}.mp4").write_bytes(encode_clip(pictures, [t / 12 for t in range(24)], 12.0)[0])
    make_shards(str(root / "in"), root / "shards", samples_per_shard=2, progress=False)
    return root / "shards"


@pytest.fixture(scope="session")
def processes():
    """Starts functions in fresh processes; the imports are paid for once, in a server that forks."""
    # read by the server when it starts: several processes with several threads each would only fight
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmtok.training.cli", "mmtok.data.module", "torchvision", "training_toys"])

    def start(function, *args):
        process = context.Process(target=function, args=args)
        process.start()
        return process

    def run(function, *args, timeout=120):
        process = start(function, *args)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{function.__name__} did not end in {timeout} s")
        return process.exitcode

    run.start = start
    return run


@pytest.fixture(scope="session")
def speech_model(tmp_path_factory):
    """Folder of a tiny random HuBERT with the published strides: 16 wide, two layers."""
    import torch
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=[8] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, vocab_size=8,
    )
    folder = tmp_path_factory.mktemp("teacher")
    HubertModel(config).save_pretrained(folder)
    return str(folder)


TITOK = "mmtok.models.image.titok"
SIZES = {"dim": 4, "num_latents": 16, "image_size": 64, "patch": 16, "width": 32, "layers": 1, "heads": 2}
SMALL_MODEL = {
    "class_path": f"{TITOK}.TiTok",
    "init_args": {
        "encoder": {"class_path": f"{TITOK}.TiTokEncoder", "init_args": SIZES},
        "quantizer": {"class_path": "mmtok.quantizers.vq.VQ", "init_args": {"dim": 4, "codebook_size": 64}},
        "decoder": {"class_path": f"{TITOK}.TiTokDecoder", "init_args": SIZES},
        "tail": {"class_path": "mmtok.taildrop.UniformTail"},
    },
}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """Folder of a saved tail-drop image tokenizer with random weights: 16 codes a tile of 64 x 64 pixels."""
    import torch

    from mmtok.hub import build, save

    torch.manual_seed(0)
    return save(build(SMALL_MODEL), tmp_path_factory.mktemp("small") / "model")


@pytest.fixture
def photos(tmp_path):
    """A folder with nested images of mixed sizes and formats, and one file that is none."""
    root = tmp_path / "photos"
    (root / "trip" / "day1").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, height, width in (("a.png", 64, 64), ("trip/b.jpg", 33, 100), ("trip/day1/c.WEBP", 1, 1)):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / name)
    (root / "trip" / "notes.txt").write_text("not asked for")
    return root
