"""Published files at full size, without weights: every key is read, and the shapes are those of the recipe's model."""

import importlib

import layouts
import pytest
import torch
from omegaconf import OmegaConf

from mmtok.catalogue import published
from mmtok.hub import build
from mmtok.importers.keymap import check_complete
from mmtok.listing import config_path
from mmtok.training.config_file import read_config_file

ENTRIES = published()
DD = {"double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
      "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0}  # fmt: skip
VQ8K = {
    "model": {"vq_model": {
        "codebook_size": 8192, "token_size": 64, "use_l2_norm": False, "vit_enc_model_size": "small",
        "vit_dec_model_size": "large", "vit_enc_patch_size": 16, "vit_dec_patch_size": 16, "num_latent_tokens": 256,
        "finetune_decoder": False, "is_legacy": False}},
    "dataset": {"preprocessing": {"crop_size": 256}},
}  # fmt: skip
MULT = (1, 1, 2, 2, 4)


def taming(codes):
    return {"model": {"params": {"ddconfig": DD, "embed_dim": 256, "n_embed": codes}}}


# entry: (published shapes, published settings or None for the catalogue's, number of keys where it was published)
CASES = {
    "vqgan-f16-1024": (layouts.vqgan(128, MULT, 2, 256, 256, 1024), taming(1024), None),
    "vqgan-f16-16384": (layouts.vqgan(128, MULT, 2, 256, 256, 16384), taming(16384), None),
    "llamagen-vq16": (
        layouts.vqgan(128, MULT, 2, 256, 8, 16384, layouts.LLAMAGEN) | {"quantize.codebook_used": (65536,)}, None, 344,
    ),
    "llamagen-vq8": (
        layouts.vqgan(128, (1, 2, 2, 4), 2, 256, 8, 16384, layouts.LLAMAGEN) | {"quantize.codebook_used": (65536,)},
        None, None,
    ),
    "ibq-1024": (layouts.vqgan(128, MULT, 4, 256, 256, 1024), None, None),
    "ibq-262144": (layouts.vqgan(128, MULT, 4, 256, 256, 262144), None, None),
    "var-vqvae": (layouts.var(), None, 324),
    "bsq-vit-18": (layouts.bsq(), None, 309),
    "titok-sl256-vq8k": (layouts.titok((512, 1024), (8, 24), 256, 8192, 64), VQ8K, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_key_map_is_a_bijection_onto_the_recipe(name):
    shapes, settings, count = CASES[name]
    entry = ENTRIES[name]
    state = layouts.tensors(shapes)
    assert count is None or len(state) == count
    module = importlib.import_module(f"mmtok.importers.{entry.importer}")
    converted = module.convert(state, module.facts(entry.published if settings is None else settings, state))
    assert set(converted.source.values()) | set(converted.dropped) >= {k for k in state if ".qkv." not in k}
    assert len(set(converted.source.values())) == len(converted.source)
    recipe = OmegaConf.create(read_config_file(config_path(entry.recipe)))
    with torch.device("meta"):
        models = [build(converted.config), build(OmegaConf.to_container(recipe.model.tokenizer, resolve=True))]
    # buffers that only training reads may differ between a recipe and an import
    parameters = [{k: v.shape for k, v in model.named_parameters()} for model in models]
    assert parameters[0] == parameters[1]
    check_complete(converted.state, models[0].state_dict())
    kept = sum(converted.state[key].numel() for key in parameters[0])
    digits = len(f"{entry.parameters:g}".partition(".")[2])
    assert round(kept / 1e6, digits) == entry.parameters


@pytest.mark.parametrize(("family", "kind", "millions"), [("encodec", "Encodec", 14.85), ("dac", "Dac", 76.62)])
def test_transformers_models_at_their_published_size_are_read_whole(family, kind, millions):
    """The released configuration is the default of these classes."""
    transformers = importlib.import_module("transformers")
    settings = getattr(transformers, f"{kind}Config")()
    with torch.device("meta"):
        theirs = getattr(transformers, f"{kind}Model")(settings)
    state = dict(theirs.state_dict())
    module = importlib.import_module(f"mmtok.importers.{family}")
    published_settings = settings.to_dict() | {"sampling_rate": settings.sampling_rate}
    converted = module.convert(state, module.facts(published_settings, state))
    assert set(converted.source.values()) == set(state) and not converted.dropped
    with torch.device("meta"):
        ours = build(converted.config)
    check_complete(converted.state, ours.state_dict())
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1] and round(counts[0] / 1e6, 2) == millions
