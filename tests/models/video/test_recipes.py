"""Recipes of convolutional video tokenizers: published sizes, and what they build trains."""

import pathlib

import pytest
import torch
from jsonargparse import ArgumentParser
from omegaconf import OmegaConf

from mmtok.hub import build
from mmtok.importers import cosmos, vidtok
from mmtok.nn.cogvideox import CogVideoXDecoder, CogVideoXEncoder
from mmtok.nn.resample3d import HybridDown, HybridUp
from mmtok.training import Objective
from mmtok.training.config_file import read_config_file
from mmtok.types import Batch

CONFIGS = pathlib.Path(__file__).parents[3] / "configs" / "video"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem.startswith(("vidtok", "cosmos")))


def model_config(name, tiny=False):
    source = read_config_file(CONFIGS / f"{name}.yaml", tiny=tiny)
    return OmegaConf.to_container(OmegaConf.create({"model": source["model"]}), resolve=True)["model"]


def full(name):
    with torch.device("meta"):
        return build(model_config(name)["tokenizer"])


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


# stride, codes of the reference clip, codebook, bpp
TABLE = {
    "vidtok_fsq_488_32768": ((4, 8, 8), 5120, 32768), "vidtok_fsq_488_262144": ((4, 8, 8), 5120, 262144),
    "vidtok_fsq_488_4096": ((4, 8, 8), 5120, 4096), "vidtok_fsq_888_32768": ((8, 8, 8), 5120, 32768),
    "vidtok_fsq_41616_262144": ((4, 16, 16), 1280, 262144), "vidtok_fsq_488_32768_stage2": ((4, 8, 8), 5120, 32768),
    "cosmos_dv_8x8x8": ((8, 8, 8), 7 * 1024, 64000), "cosmos_dv_4x8x8": ((4, 8, 8), 13 * 1024, 64000),
    "cosmos_dv_8x16x16": ((8, 16, 16), 7 * 256, 64000), "cosmos_dv_4x8x8_360p": ((4, 8, 8), 13 * 1024, 64000),
}  # fmt: skip


def test_every_recipe_is_in_the_table():
    assert set(NAMES) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_strides_codes_and_rates(name):
    spec = full(name).spec
    stride, count, codes = TABLE[name]
    assert (spec.stride, spec.tokens, spec.codebook_sizes) == (stride, count, ((codes,),))


def test_vidtok_has_the_published_sizes():
    model = full("vidtok_fsq_488_32768")
    assert round(millions(model.encoder), 1) == 69.2 and round(millions(model.decoder), 1) == 88.2
    assert len(model.encoder.state_dict()) == 176 and len(model.decoder.state_dict()) == 240
    assert round(model.spec.bpp, 3) == 0.069  # 17 frames


def test_cogvideox_has_the_published_size():
    with torch.device("meta"):
        halves = CogVideoXEncoder(), CogVideoXDecoder()
    assert round(sum(millions(half) for half in halves), 1) == 215.6
    assert sum(len(half.state_dict()) for half in halves) == 436


@pytest.mark.parametrize(
    "name,published", [("cosmos_dv_8x8x8", 112.5), ("cosmos_dv_4x8x8", 112.5), ("cosmos_dv_8x16x16", 112.5),
                       ("cosmos_dv_4x8x8_360p", 114.2)]
)  # fmt: skip
def test_cosmos_has_the_published_sizes_without_what_is_never_used(name, published):
    """Published models hold three convolutions at every level, whether or not it changes time or space."""
    model = full(name)
    idle = 0
    sides = ((model.encoder, HybridDown, (256, 512, 512)), (model.decoder, HybridUp, (512, 512, 256)))
    for side, kinds, widths in sides:
        for level, width in zip(side.levels, widths, strict=True):
            if level is side.levels[-1]:
                continue
            part = level.resample
            assert part is None or isinstance(part, kinds)
            idle += 0 if part is not None and part.space is not None else 9 * width**2 + width
            idle += 0 if part is not None and part.time is not None else 3 * width**2 + width
            idle += 0 if part is not None else width**2 + width
    assert round(millions(model) + idle / 1e6, 1) == published


@pytest.mark.parametrize("name", TABLE)
def test_recipe_and_importer_describe_the_same_model(name):
    ours = full(name)
    if name.startswith("vidtok"):
        sizes = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
        if "888" in name:
            sizes |= {"tempo_ds": [0, 1, 2], "tempo_us": [1, 2, 3]}
        if "41616" in name:
            sizes["ch_mult"] = [1, 2, 4, 4, 4]
        facts = {"sizes": sizes, "levels": [8] * ours.quantizer.dim, "v1_1": True}
        config = vidtok.convert({}, facts).config
    else:
        facts = {
            "patch_size": ours.encoder.stem.patch, "channels": 128, "channels_mult": [2, 4, 4], "num_res_blocks": 2,
            "z_channels": ours.encoder.z_channels, "levels": cosmos.LEVELS, "spatial_compression": ours.stride[1],
            "temporal_compression": ours.stride[0],
        }  # fmt: skip
        config = cosmos.convert({}, facts).config
    with torch.device("meta"):
        imported = build(config)
    assert imported.stride == ours.stride
    shapes = [{key: value.shape for key, value in t.state_dict().items()} for t in (ours, imported)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", [n for n in TABLE if not n.endswith("stage2")])
def test_tiny_recipes_take_a_training_step(name):
    """Tokenizer and objective as configured, on random clips: finite losses, gradients everywhere, and codes."""
    torch.manual_seed(0)
    config = model_config(name, tiny=True)
    tokenizer = build(config["tokenizer"]).train()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    objective = parser.instantiate_classes(parser.parse_object({"objective": config["objective"]})).objective.train()
    objective.bind(tokenizer)
    batch = Batch.of(torch.rand(1, 3, *tokenizer.size) * 2 - 1)
    recon = tokenizer(batch)
    terms = objective.generator(recon, batch, 1) | objective.discriminator(recon, batch, 1)
    assert all(bool(value.isfinite()) for value in terms.values())
    torch.stack(list(objective.generator(recon, batch, 1).values())).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in tokenizer.parameters())
    assert tokenizer.eval().encode(batch).codes.shape[2] == tokenizer.positions(tokenizer.size)[0]
