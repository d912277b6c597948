"""Every causal recipe of video, as its tiny variant: the future changes no earlier code, and chunks equal the whole."""

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
        for parameter in model.parameters():  # fresh weights hardly look at the input
            parameter.add_(torch.randn_like(parameter) * 0.1)
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
    state, parts = model.stream_state(), []
    for piece in [*x.split(5, 2), x[:, :, :0]]:
        tokens, state = model.encode_chunk(piece, state, last=not piece.shape[2])
        parts.append(flat(tokens))
    assert torch.equal(torch.cat(parts), codes)
