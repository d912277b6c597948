"""Published files at full size, without weights: every key is read, and the shapes are those of the recipe's model.

Keys and shapes come from tests/importers/layouts*.py, which test_layouts.py holds to the references.
"""

import importlib
import math
import re

import full_sizes
import layouts
import pytest
import torch
from full_sizes import Cut
from omegaconf import OmegaConf

from mmtok.catalogue import published
from mmtok.hub import build
from mmtok.importers.keymap import check_complete
from mmtok.listing import config_path
from mmtok.training.config_file import read_config_file

ENTRIES = published()
# state that is no parameter: counts of the training, tables that follow from sizes, codebooks kept as running means
BUFFERS = re.compile(
    r"quantize\.(group_)?basis|.*(codebook_used|ema_vocab_hit_SV|embed_prob|scaler|lvl1LC|position_ids)|"
    r".*codebook\.(inited|_?initialized|cluster_size|cluster_usage|embed|embed_avg|embed(ding)?_sum)|.*istft\.window|"
    r".*(filter|inv_freq)|ema_(count|weight)|codebook\.(embeddings|N|z_avg|codebook_usage)|.*relative_position_index|"
    r".*norm\.beta|(encoder_patch_pe|decoder_latent_pe|decoder_patch_query_embed)|vq\._codebook\..*|"
    r".*(patcher3d|unpatcher3d)\..*|.*quantizer\._?(levels|basis|implicit_codebook)"
)


def full_size(name):
    """(entry, keys with shapes, settings, Converted) of an entry of the catalogue."""
    entry, case = ENTRIES[name], full_sizes.CASES[name]
    state = layouts.tensors(case.shapes) | case.values
    module = importlib.import_module(f"mmtok.importers.{entry.importer}")
    settings = entry.published if case.settings is None else case.settings
    return entry, case, state, module.convert(state, module.facts(settings, state))


def recipe_of(entry, legacy=()):
    config = OmegaConf.create(read_config_file(config_path(entry.recipe)))
    tokenizer = OmegaConf.to_container(config.model.tokenizer, resolve=True)
    for flag in legacy:
        for side in ("encoder", "decoder"):
            tokenizer["init_args"][side]["init_args"][flag] = True
    with torch.device("meta"):
        return build(tokenizer)


def size_of(shapes, keys=".*"):
    """Parameters, in the authors' sense, under the keys that match."""
    own = {key for key in shapes if re.fullmatch(keys, key) and not BUFFERS.fullmatch(key)}
    return sum(math.prod(shapes[key]) for key in own)


def folded(shapes):
    """Weights without weight normalization, which some files have multiplied out."""
    norm = ".parametrizations.weight.original"
    return {k.replace(f"{norm}1", ".weight"): shape for k, shape in shapes.items() if not k.endswith(f"{norm}0")}


def rounded(count, like):
    """Millions to the digits of `like`, as it was made."""
    digits = len(f"{like:g}".partition(".")[2])
    return math.floor(count / 1e6 * 10**digits) / 10**digits if isinstance(like, Cut) else round(count / 1e6, digits)


@pytest.mark.parametrize("name", full_sizes.CASES)
def test_key_map_is_a_bijection_onto_the_recipe(name):
    entry, case, state, converted = full_size(name)
    assert case.count is None or len(state) == case.count
    told = case.published if isinstance(case.published, dict) else {".*": case.published}
    for keys, millions in told.items():
        assert millions is None or rounded(size_of(case.shapes, keys), millions) == millions, keys
    # what is joined with another key is named by that one
    joined = {key for key in state if any(part in key for part in case.joined)}
    assert set(converted.source.values()) | set(converted.dropped) >= set(state) - joined
    assert len(set(converted.source.values())) == len(converted.source)
    with torch.device("meta"):
        ours = build(converted.config)
    check_complete(converted.state, ours.state_dict())
    parameters = {key: value.shape for key, value in ours.named_parameters()}
    assert rounded(sum(math.prod(shape) for shape in parameters.values()), entry.parameters) == entry.parameters
    if entry.recipe is not None:
        trained = {key: value.shape for key, value in recipe_of(entry, case.legacy).named_parameters()}
        # a recipe may hold what only its training reads, or what is fetched apart
        ours, theirs = (
            folded({k: v for k, v in found.items() if not k.startswith(less)})
            for found, less in ((trained, case.training), (parameters, case.apart))
        )
        assert ours == theirs


def test_every_published_layout_is_here():
    assert set(ENTRIES) - set(full_sizes.CASES) == set()


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
