"""Every causal recipe of video, as its tiny variant: the future changes no earlier code, chunks equal the whole, and
media of any size and duration come back."""

import pathlib

import pytest
import torch
from omegaconf import OmegaConf
from video_models import video

from mmtok.hub import build
from mmtok.training.config_file import read_config_file

FOLDER = pathlib.Path(__file__).parents[3] / "configs"
RECIPES = [*sorted((FOLDER / "video").glob("*.yaml")), FOLDER / "demo" / "video.yaml"]


def tokenizer(path):
    source = read_config_file(path, tiny=True)
    source = OmegaConf.create({"model": source["model"], "trainer": source["trainer"]})
    torch.manual_seed(0)
    model = build(OmegaConf.to_container(source, resolve=True)["model"]["tokenizer"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # fresh weights hardly look at the input
            # wilder decoders of this depth grow rounding beyond the 1e-5 that chunks are held to
            parameter.add_(torch.randn_like(parameter) * (0.02 if name.startswith("decoder") else 0.1))
    return model.eval()


def flat(tokens):
    """Codes of one clip with time first; a block of codes is a row."""
    return tokens.codes[0].transpose(0, 1).flatten(1)


@torch.no_grad()
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_codes_before_a_changed_frame_stay_and_chunks_equal_the_whole(path):
    model = tokenizer(path)
    assert model.causal, "a recipe that is not causal says so here"
    side, frames = 32, 33
    x = video(frames, side, side)
    codes = flat(model.encode(x))

    def blocks(count):
        """Whole blocks that the first frames fill."""
        at, nearest = model.positions((count, side, side))[0], model.positions((count + 1, side, side))[0]
        return at if nearest > at else at - 1

    for t in (9, 17, 30):
        changed = x.clone()
        changed[:, :, t:] = video(frames - t, side, side, seed=t)
        other = flat(model.encode(changed))
        before = blocks(t)
        assert torch.equal(other[:before], codes[:before])
        # a few coarse codes may all stay, what they are rounded from may not
        assert not torch.equal(other, codes) or not torch.equal(model.latents(changed), model.latents(x))
    state, parts, shown = model.stream_state(), [], []
    pieces = [*x.split([5, 0, 1, 13, 4, 2, 8], 2), x[:, :, :0]]  # two without a frame
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        tokens, state = model.encode_chunk(piece, state, last=last)
        parts.append(tokens)
        y, state = model.decode_chunk(tokens, state, last=last)
        shown.append(y)
    assert torch.equal(torch.cat([flat(tokens) for tokens in parts]), codes)
    decoded = model.decode(model.encode(x))
    torch.testing.assert_close(torch.cat(shown, 2), decoded, atol=1e-5, rtol=0)
    if model.positions((2, side, side))[0] == 2:  # the first frame stands alone: a lone image is frame 0
        image = model.encode(x[:, :, :1])
        assert torch.equal(flat(image), codes[:1])
        torch.testing.assert_close(model.decode(image), decoded[:, :, :1], atol=1e-5, rtol=0)
    else:  # models of whole blocks
        assert path.stem.startswith(("larp", "adaptok", "elastictok"))


def held(value, seen):
    """Bytes of all tensors in a state, each storage once."""
    if isinstance(value, torch.Tensor):
        new = value.untyped_storage().data_ptr() not in seen
        seen.add(value.untyped_storage().data_ptr())
        return value.untyped_storage().nbytes() if new else 0
    parts = value if isinstance(value, (list, tuple)) else value.values() if isinstance(value, dict) else []
    return sum(held(part, seen) for part in [*parts, *getattr(value, "__dict__", {}).values()])


@torch.no_grad()
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_stream_holds_no_more_after_a_long_time(path):
    model, sizes = tokenizer(path), []
    state = model.stream_state()
    for index in range(26):
        tokens, state = model.encode_chunk(video(model.stride[0], 8, 8, seed=index), state)
        _, state = model.decode_chunk(tokens, state)
        sizes.append(held(state, set()))
    # its published attention has no end: `window` is there to bound it
    grows = path.stem == "elastictok_fsq"
    assert (sizes[25] == sizes[19]) != grows and sizes[25] > 0


@torch.no_grad()
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_size_and_duration_comes_back(path):
    model = tokenizer(path)
    for size in ((1, 1, 1), (2, 17, 9), (33, 16, 31), (1, 257, 129)):
        x = video(*size)
        tokens = model.encode(x)
        y = model.decode(tokens)
        assert tokens.shapes == model.grid_shapes(size) and y.shape == x.shape and bool(y.isfinite().all())
