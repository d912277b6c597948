"""FQGAN against the reference: both codebooks, predicted features, the term that keeps them apart, images."""

import re

import pytest
import torch
from golden_sets import check_keys, close, folders, label, load_golden, raw_image
from safetensors.torch import load_file

from mmtok import importers
from mmtok.importers import fqgan
from mmtok.types import Batch


@pytest.fixture(params=folders("fqgan_dual"), ids=label)
def golden(request):
    return load_golden(request.param)


@torch.no_grad()
def test_dual(golden):
    facts, tokenizer, io, converted = golden
    check_keys(tokenizer, converted, own={"quantizer.members.0.usage", "quantizer.members.1.usage"})
    z = tokenizer.latents(io["x"])
    out = tokenizer.quantizer(z)
    for i, name in enumerate(("vis", "sem")):
        close(z.chunk(2, 1)[i], io[f"z_{name}"])
        close(out.z.chunk(2, 1)[i], io[f"z_q_{name}"])
    close(0.1 * out.losses["disentangle"].view(1), io["loss_disentangle"], atol=1e-8)
    tokens = tokenizer.encode(io["x"])
    assert torch.equal(tokens.codes, torch.stack([io["indices_vis"], io["indices_sem"]], 1))
    close(raw_image(facts, tokenizer, tokens), io["recon"], atol=1e-4)
    close(tokenizer.features[0](io["z_q_sem"]), io["feature_prediction"])
    recon = tokenizer(Batch.of(io["x"]))
    close(recon.heads["features_1"], io["feature_prediction"][:, 0])


@torch.no_grad()
@pytest.mark.parametrize("folder", folders("fqgan_dual"), ids=label)
def test_triple(folder):
    """Three branches under their published names: the dual model with its semantic branch twice."""
    dual, state = load_file(folder / "weights.safetensors"), {}
    for key, value in dual.items():
        if key == "post_quant_conv.weight":
            dim = value.shape[1] // 2
            state[key] = torch.cat([value, torch.zeros_like(value[:, :dim])], 1)
        elif "feat_pred_head" in key:
            state |= {key.replace("feat_pred_head", f"{level}_sem_feat_pred"): value for level in ("mid", "high")}
        elif re.search(r"semantic_head|_sem\b", key):
            for level in ("mid", "high"):
                name = re.sub(r"_sem\b", f"_sem_{level}", key).replace("semantic_head", f"semantic_head_{level}")
                state[name] = value
        else:
            state[key] = value
    facts = fqgan.facts({}, state)
    converted = fqgan.convert(state, facts)
    assert set(converted.source.values()) | set(converted.dropped) == set(state)
    tokenizer, io = importers.instantiate(converted), load_file(folder / "io.safetensors")
    tokens = tokenizer.encode(io["x"])
    assert torch.equal(tokens.codes, torch.stack([io["indices_vis"], io["indices_sem"], io["indices_sem"]], 1))
    close(tokenizer._from_model(tokenizer.reconstruct(tokenizer.embed(tokens), tokens), tokens), io["recon"], atol=1e-4)
    recon = tokenizer(Batch.of(io["x"]))
    for head in ("features_1", "features_2"):
        close(recon.heads[head], io["feature_prediction"][:, 0])
