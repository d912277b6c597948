"""Recipes of video transformers: published sizes, and what they build trains."""

import pathlib

import pytest
import torch
from jsonargparse import ArgumentParser
from omegaconf import OmegaConf

from mmtok.hub import build
from mmtok.importers import adaptok, elastictok, larp, open_magvit2_video, vivit
from mmtok.training import Objective
from mmtok.training.config_file import read_config_file
from mmtok.types import Batch

CONFIGS = pathlib.Path(__file__).parents[3] / "configs" / "video"
# name -> (codes of the reference clip, codebook, millions of parameters)
TABLE = {
    "larp_l_long": (1024, 8192, 193.9), "adaptok": (2048, 8192, 195.1), "adaptok_scorer": (2048, 8192, None),
    "elastictok_fsq": (4096, 64000, 210.2), "omnitokenizer_stage1": (5120, 8192, None),
    "omnitokenizer_stage2": (5120, 8192, None), "cvivit_vq": (1536, 8192, None),
    "open_magvit2_video": (1280, 2**18, None),
}  # fmt: skip


def model_config(name, tiny=False):
    source = read_config_file(CONFIGS / f"{name}.yaml", tiny=tiny)
    resolved = OmegaConf.create({"model": source["model"], "trainer": source["trainer"]})
    return OmegaConf.to_container(resolved, resolve=True)["model"]


def full(name):
    with torch.device("meta"):
        return build(model_config(name)["tokenizer"])


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize("name", TABLE)
def test_codes_and_published_sizes(name):
    count, codes, size = TABLE[name]
    model = full(name)
    assert model.spec.tokens == count and model.spec.codebook_sizes == ((codes,),)
    assert size is None or round(millions(model), 1) == size


def test_halves_have_the_published_sizes():
    assert round(millions(full("larp_l_long").prior), 1) == 21.7
    omni = full("omnitokenizer_stage1")
    # published layers hold norms that nothing reads, and those over time a network of biases that nothing adds
    bias = 4 * (3 * 512 + 513 * 512 + 513 * 8) / 1e6
    assert round(millions(omni.encoder) + bias + 6 * 512 / 1e6, 2) == 26.84
    assert round(millions(omni.decoder) + bias + 8 * 512 / 1e6, 2) == 26.86


@pytest.mark.parametrize("name", ["larp_l_long", "adaptok", "elastictok_fsq", "omnitokenizer_stage1",
                                  "open_magvit2_video"])  # fmt: skip
def test_recipe_and_importer_describe_the_same_model(name):
    ours = full(name)
    heads = {"encoder_heads": 12, "decoder_heads": 12}
    larp_sizes = {"dim": 16, "patch": [4, 8, 8], "width": 768, "codebook_size": 8192, "image_size": 128, "frames": 16,
                  "encoder_layers": 12, "decoder_layers": 12} | heads  # fmt: skip
    prior = {"width": 384, "layers": 12, "heads": 6}
    calls = {
        "larp_l_long": (larp.networks, (larp_sizes | {"latents": 1024, "prior": prior | {"length": 1024}}, 16, 1)),
        "adaptok": (larp.networks, (larp_sizes | {"latents": 2048, "prior": prior | {"length": 2048}}, 4, 4)),
    }
    if name in calls:
        function, arguments = calls[name]
        found = function(*arguments)
        module, kind = (larp, "larp.LARP") if name.startswith("larp") else (adaptok, "adaptok.AdapTok")
        assert module.SYSTEMS
        if module is adaptok:
            found["tail"] = model_config(name)["tokenizer"]["init_args"]["tail"]
        config = {"class_path": f"mmtok.models.video.{kind}", "init_args": found}
    elif name == "elastictok_fsq":
        facts = elastictok.RELEASED | {"width": 1024, "hidden": 2048, "layers": {"encoder": 10, "decoder": 10}}
        config = elastictok.convert({}, facts).config
    elif name == "omnitokenizer_stage1":
        facts = {"omni": True, "dim": 512, "patch": [4, 8, 8], "temporal": 4, "heads": 8, "head": 64, "window": 8,
                 "size": 256, "kinds": {"enc": "ttww", "dec": "tttt"}, "codebook": [8192, 8]}  # fmt: skip
        config = vivit.convert({}, facts).config
    else:
        facts = {"channels": 128, "channel_mult": [1, 2, 2, 4], "num_res_blocks": 4, "z_channels": 18,
                 "strides": [[1, 2], [2, 2], [2, 2]], "image_size": 128}  # fmt: skip
        config = open_magvit2_video.convert({}, facts).config
    with torch.device("meta"):
        imported = build(config)
    assert imported.stride == ours.stride and imported.size == ours.size
    shapes = [sorted(tuple(p.shape) for p in model.parameters()) for model in (ours, imported)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", TABLE)
def test_tiny_recipes_take_a_training_step(name):
    """Tokenizer and objective as configured, on random clips: finite losses, gradients everywhere, and codes."""
    torch.manual_seed(0)
    config = model_config(name, tiny=True)
    tokenizer = build(config["tokenizer"]).train()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    objective = parser.instantiate_classes(parser.parse_object({"objective": config["objective"]})).objective.train()
    objective.bind(tokenizer)
    clip = torch.rand(2, 3, *tokenizer.size) * 2 - 1
    images = name.endswith("stage1")
    batch = Batch.of(clip[:, :, 0] if images else clip)
    recon = tokenizer(batch, 0.5)
    terms = objective.generator(recon, batch, 1) | objective.discriminator(recon, batch, 1)
    assert all(bool(value.isfinite()) for value in terms.values())
    torch.stack(list(objective.generator(recon, batch, 1).values())).sum().backward()
    trained = tokenizer.scorer if name == "adaptok_scorer" else tokenizer
    for key, parameter in trained.named_parameters():
        idle = images and ".rest." in key
        assert idle or (parameter.grad is not None and bool(parameter.grad.isfinite().all())), key
    assert tokenizer.eval().encode(batch).codes.shape[2] == (1 if images else tokenizer.positions(tokenizer.size)[0])
