"""X-Codec-2 reproduces its references: speech model, adapter, encoder, codes, sound, in both published layouts."""

import copy
import functools
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtok import hub, importers
from mmtok.bitstream import pack, unpack
from mmtok.importers import xcodec2
from mmtok.types import Batch

ROOTS = [Path(__file__).parents[1] / "golden"] + [Path(p) for p in [os.environ.get("MMTOK_GOLDEN")] if p]
FOLDERS = [root / "audio" / name for root in ROOTS for name in xcodec2.SYSTEMS if (root / "audio" / name).is_dir()]


@functools.cache
def load(folder):
    published = json.loads((folder / "config.json").read_text())
    state, io = load_file(folder / "weights.safetensors"), load_file(folder / "io.safetensors")
    converted = xcodec2.convert(state, xcodec2.facts(published, state))
    return importers.instantiate(converted), io, converted, state


@pytest.fixture(params=FOLDERS, ids=lambda folder: f"{folder.parents[1].name}-{folder.name}")
def golden(request):
    tokenizer, io, converted, state = load(request.param)
    return copy.deepcopy(tokenizer), io, converted, state


def close(actual, expected):
    assert actual.shape == expected.shape
    assert float((actual - expected).detach().abs().max()) <= 1e-4 * max(1.0, float(expected.std()))


def heard(tokenizer, io):
    """The clips with the speech model's features, [B, F, E] as ours are."""
    features = io["semantic_hidden"]
    if tokenizer.frontend is None:  # the original keeps channels first
        features = features.transpose(1, 2)
    batch = Batch.of(io["wave"])
    return Batch(batch.x, batch.keys, batch.size, features={"semantic": features})


@torch.no_grad()
def test_every_part(golden):
    tokenizer, io, _, _ = golden
    batch = heard(tokenizer, io)
    if tokenizer.frontend is not None:
        close(tokenizer.frontend.trunk(io["semantic_input"]), io["semantic_hidden"])
    close(tokenizer.adapter(batch.features["semantic"].transpose(1, 2)), io["semantic_latent"])
    close(tokenizer.encoder(io["wave"]), io["acoustic_latent"])
    z = tokenizer.latents_of(batch)
    close(z, io["fused"])
    close(tokenizer.quantizer.inward(z), io["fsq_input"])
    tokens = tokenizer.encode(batch)
    assert torch.equal(tokens.codes, io["codes"])
    close(tokenizer.embed(tokens), io["quantized"])
    close(tokenizer.reconstruct(tokenizer.embed(tokens), tokens), io["decoded"])
    assert tokenizer.decode(tokens).shape == io["wave"].shape
    if "semantic_recon" in io:
        told = tokenizer.tell(io["quantized"].transpose(1, 2)).transpose(1, 2)
        close(tokenizer.meaning(told), io["semantic_recon"])
        losses = tokenizer(batch).losses
        expected = (io["semantic_recon"] - io["semantic_hidden"]).square().mean()
        assert float(losses["semantic"]) == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_files_saving_and_batches(golden, tmp_path):
    tokenizer, io, converted, _ = golden
    batch = heard(tokenizer, io)
    tokens = tokenizer.encode(batch)
    again = unpack(pack(tokens[0]), tokenizer)
    assert torch.equal(again.codes, tokens.codes[:1])
    tokenizer.config = converted.config
    loaded = hub.load(hub.save(tokenizer, tmp_path / "saved"))
    assert torch.equal(loaded.encode(batch).codes, tokens.codes)
    one = Batch(batch.x[:1], ("0",), batch.size[:1], features={"semantic": batch.features["semantic"][:1]})
    assert torch.equal(tokenizer.encode(one).codes, tokens.codes[:1])
    with pytest.raises(ValueError, match="features"):
        tokenizer.encode(Batch(batch.x, batch.keys, batch.size, features={"semantic": torch.zeros(1, 2, 3)}))
    if tokenizer.frontend is None:
        with pytest.raises(ValueError, match="without its speech model"):
            tokenizer.encode(batch.x)


def test_every_published_key_is_accounted_for(golden):
    tokenizer, _, converted, state = golden
    named = set(converted.source.values()) | set(converted.dropped)
    assert {key for key in state if not key.endswith((".k_proj.weight", ".v_proj.weight"))} <= named
    assert set(tokenizer.state_dict()) == set(converted.source)
    assert not any(p.requires_grad for p in (tokenizer.frontend or torch.nn.Identity()).parameters())
