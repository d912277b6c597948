"""GLM-4-Voice's speech tokenizer reproduces its reference: features, masks, codes, a training step."""

import copy
import functools
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtok import importers
from mmtok.importers import glm
from mmtok.models.audio.long import encode_long
from mmtok.types import Batch

ROOTS = [Path(__file__).parents[1] / "golden"] + [Path(p) for p in [os.environ.get("MMTOK_GOLDEN")] if p]
FOLDERS = [folder for root in ROOTS for folder in sorted(root.glob("audio/glm_tokenizer"))]


@functools.cache
def load(folder):
    published = json.loads((folder / "config.json").read_text())
    state, io = load_file(folder / "weights.safetensors"), load_file(folder / "io.safetensors")
    converted = glm.convert(state, glm.facts(published, state))
    return published, importers.instantiate(converted), io, state


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.parents[1].name)
def golden(request):
    published, tokenizer, io, state = load(request.param)
    return published, copy.deepcopy(tokenizer), io, state


def close(actual, expected, bound=1e-4):
    assert actual.shape == expected.shape
    assert float((actual - expected).detach().abs().max()) <= bound * max(1.0, float(expected.std()))


def padded(io):
    """A batch of the two clips, the shorter one with zeros behind it."""
    waves = [io["wave.0"], io["wave.1"]]
    lengths = torch.tensor([len(w) for w in waves])
    x = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)[:, None]
    return Batch(x, ("a", "b"), lengths[:, None], lengths=lengths)


@torch.no_grad()
def test_features_masks_and_codes(golden):
    _, tokenizer, io, state = golden
    batch = padded(io)
    encoder, trunk = tokenizer.encoder, tokenizer.encoder.trunk
    mel = encoder.mel(torch.nn.functional.pad(batch.x, (0, -batch.x.shape[-1] % encoder.stride)))
    close(mel, io["mel"])
    close(trunk.convolve(io["mel"]), io["conv"].transpose(1, 2))
    frames = -(-batch.lengths // 320)
    assert torch.equal(trunk.mask(io["conv"].shape[1], frames, torch.device("cpu"))[:, 0], io["block_mask"].bool())
    valid = io["token_mask"].bool()
    z = tokenizer.latents_of(batch).transpose(1, 2)
    close(z[valid], io["pooled"][valid])
    tokens = tokenizer.encode(batch)
    assert torch.equal(tokens.codes[:, 0][valid], io["codes"][valid])
    close((tokenizer.embed(tokens).transpose(1, 2) + state["embed_positions2.weight"][: z.shape[1]])[valid],
          io["last_hidden_state"][valid])  # fmt: skip
    bits = len(tokenizer.quantizer.codebook).bit_length() - 1
    assert tokenizer.spec.kbps == pytest.approx(16 / encoder.stride * bits)


@torch.no_grad()
def test_clips_alone_and_pieces(golden):
    """A clip alone has its codes of the batch; clips longer than the position table are cut."""
    _, tokenizer, io, _ = golden
    for index in range(2):
        wave = io[f"wave.{index}"][None, None]
        tokens = tokenizer.encode(wave)
        assert torch.equal(tokens.codes[0, 0], io[f"single{index}.codes"])
        assert tokens.codes.shape[-1] == tokenizer.positions((wave.shape[-1],))[0]
    size = len(tokenizer.encoder.trunk.positions) * 320
    long = torch.cat([io["wave.0"], io["wave.1"], io["wave.0"].flip(0)]).repeat(2)[None, None, : 2 * size + 500]
    whole = tokenizer.encode(long).codes
    parts = [tokenizer.encode(part).codes for part in long.split(size, -1)]
    assert len(parts) == 3 and torch.equal(whole, torch.cat(parts, -1))
    streamed = encode_long(tokenizer, iter(long[0].split(7000, -1)), seconds=0.2)
    assert torch.equal(streamed.codes, whole)


def test_codes_have_no_sound(golden):
    _, tokenizer, io, _ = golden
    tokens = tokenizer.encode(io["wave.0"][None, None])
    with pytest.raises(ValueError, match="no part of this package"):
        tokenizer.decode(tokens)
    with pytest.raises(ValueError, match="cannot stream"):
        tokenizer.stream_state()


def test_a_training_step(golden):
    """Loss and codebook after one step: valid positions only."""
    published, tokenizer, io, _ = golden
    tokenizer.train()
    out = tokenizer(padded(io))
    scale = published["quantize_commit_coefficient"] * published["quantize_loss_scale"]
    # the reference adds up over positions with mask 1 and divides by them
    assert float(out.losses["commit"].detach()) * scale == pytest.approx(float(io["train.loss"]), rel=1e-4)
    assert out.x is None and not out.heads
    quantizer = tokenizer.quantizer
    assert float((quantizer.codebook - io["train.after.codebook"]).abs().max()) < 1e-4
