"""FQGAN against the reference: both codebooks, predicted features, the term that keeps them apart, images."""

import pytest
import torch
from golden_sets import check_keys, close, folders, label, load_golden, raw_image

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
