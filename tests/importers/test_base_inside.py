"""A KARL or ALIT file that holds its base: MAGE's VQGAN comes along, under names that the file has."""

import re

import pytest
import torch
from golden_sets import FAMILY, folders
from safetensors.torch import load_file

from mmtok import importers
from mmtok.hub import build
from mmtok.importers import mage_vqgan

SIZES = {
    "channels": 8, "channel_mult": [1, 1, 2], "num_res_blocks": 1, "decoder_res_blocks": 1, "mid_blocks": 2, "dim": 8,
    "codebook_size": 16, "bias": False, "in_bias": False, "out_kernel": 1, "shortcut_on_branch": True,
    "strided": False, "image_size": 256,
}  # fmt: skip


def published(tokenizer):
    """State dict of a convolutional tokenizer under the names of taming's code."""
    out, levels = {}, len(tokenizer.encoder.levels)
    for key, value in tokenizer.state_dict().items():
        key = key.replace(".shortcut.", ".nin_shortcut.")
        key = re.sub(r"mid\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", key)
        key = re.sub(r"^encoder\.levels\.(\d+)\.blocks", r"encoder.down.\1.block", key)
        key = re.sub(
            r"^decoder\.levels\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.", key
        ).replace(".blocks.", ".block.").replace(".resample.", ".upsample.")
        if key != "quantizer.usage":
            out[key.replace("quantizer.codebook", "quantize.embedding.weight")] = value
    return out


def vqgan(dim, codes):
    config = mage_vqgan.config(SIZES | {"dim": dim, "codebook_size": codes})
    for part in ("encoder", "decoder"):
        config["init_args"][part]["init_args"]["groups"] = 4
    return build(config).eval()


def published_like(dim, codes, monkeypatch):
    """Weights of 8 channels, which need smaller groups than the published ones."""
    base = vqgan(dim, codes)
    plain = mage_vqgan.config

    def small(facts):
        config = plain(facts)
        for part in ("encoder", "decoder"):
            config["init_args"][part]["init_args"]["groups"] = 4
        return config

    monkeypatch.setattr(mage_vqgan, "config", small)
    return base, published(base)


def test_alone(monkeypatch):
    base, state = published_like(8, 16, monkeypatch)
    facts = mage_vqgan.facts({}, state)
    assert facts == SIZES
    converted = mage_vqgan.convert(state, facts)
    imported = importers.instantiate(converted)
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    tokens = imported.encode(x)
    assert torch.equal(tokens.codes, base.encode(x).codes)
    assert torch.equal(imported.decode(tokens), base.decode(tokens))
    assert set(converted.source.values()) == set(state)
    with pytest.raises(ValueError, match="unknown keys"):
        mage_vqgan.convert(state | {"encoder.down.0.attn.0.q.weight": torch.zeros(1)}, facts)


@pytest.mark.parametrize("system", ["karl", "alit"])
def test_inside(system, monkeypatch):
    folder = folders(system)[0]
    state = load_file(folder / "weights.safetensors")
    codebook = state["base_tokenizer.vqgan.quantize.embedding.weight"]
    base, inside = published_like(codebook.shape[1], len(codebook), monkeypatch)
    inside |= {"quantize.embedding.weight": codebook}
    base.quantizer.codebook.data.copy_(codebook)
    whole = state | {f"base_tokenizer.vqgan.{key}": value for key, value in inside.items()}
    facts = FAMILY[system].facts({}, whole) | {"heads": 2}
    converted = FAMILY[system].convert(whole, facts)
    assert set(converted.source.values()) | set(converted.dropped) == set(whole)
    tokenizer = importers.instantiate(converted)
    assert torch.equal(tokenizer.base.quantizer.codebook, tokenizer.decoder.codebook)
    side = tokenizer.size[0]
    x = torch.rand(1, 3, side, side) * 2 - 1
    assert torch.equal(tokenizer.base.encode(x).codes, base.encode(x).codes)
    tokens = tokenizer.encode(x)
    assert tokenizer.decode(tokens).shape == x.shape
