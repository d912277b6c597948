"""Imported audio codecs reproduce the reference implementations: latents, codes, waveforms, lengths, streams.

The folders under tests/golden/audio are small; MMTOK_GOLDEN names a folder whose audio/ holds larger ones.
"""

import copy
import functools
import importlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtok import importers
from mmtok.bitstream import pack, unpack
from mmtok.importers.encodec import DEPTH
from mmtok.nn.weight_norm import fold_weight_norm, unfold_weight_norm
from mmtok.types import Batch

ROOTS = [Path(__file__).parents[1] / "golden"] + [Path(p) for p in [os.environ.get("MMTOK_GOLDEN")] if p]
FAMILIES = [importlib.import_module(f"mmtok.importers.{name}") for name in importers.families()]
FAMILY = {system: family for family in FAMILIES for system in family.SYSTEMS}
APART = ("glm_tokenizer", "vocos_encodec", "xcodec2", "xcodec2_original")  # in files of their own
FOLDERS = [
    folder for root in ROOTS for folder in sorted((root / "audio").glob("*/"))
    if folder.name in FAMILY and folder.name not in APART
]


@functools.cache
def load(folder):
    """(published config, tokenizer, io, Converted); building takes longer than most tests."""
    published = json.loads((folder / "config.json").read_text())
    state, io = load_file(folder / "weights.safetensors"), load_file(folder / "io.safetensors")
    family = FAMILY[folder.name]
    converted = family.convert(state, family.facts(published, state))
    return published, importers.instantiate(converted), io, converted


@pytest.fixture(params=FOLDERS, ids=lambda folder: f"{folder.parents[1].name}-{folder.name}")
def golden(request):
    published, tokenizer, io, converted = load(request.param)
    return published, copy.deepcopy(tokenizer), dict(io), converted


def close(actual, expected):
    """Within 1e-4 of the tensor's spread, as the golden files ask."""
    assert actual.shape == expected.shape
    assert float((actual - expected).detach().abs().max()) <= 1e-4 * max(1.0, float(expected.std()))


def wave(io, name="wave"):
    return io[name] if io[name].dim() == 3 else io[name][:, None]


def joined(io, name):
    """`name`, or name.0, name.1, ... end to end in time."""
    parts = sorted((k for k in io if re.fullmatch(rf"{name}\.\d+", k)), key=lambda k: int(k.rsplit(".")[-1]))
    return io[name] if name in io else torch.cat([io[part] for part in parts], -1) if parts else None


def published_grids(tokenizer, published, io):
    if len(tokenizer.quantizer.codebook_sizes) > 1:
        return [io[f"codes.{i}"][:, None] for i in range(len(tokenizer.quantizer.codebook_sizes))]
    codes = joined(io, "codes")
    if codes is None:  # chunks x B x K x F, the last chunk padded
        chunks = io[f"codes_nq{len(tokenizer.quantizer.codebook_sizes[0])}"]
        codes = torch.cat(list(chunks), -1)
        codes = codes[..., : codes.shape[-1] - published["last_frame_pad_length"]]
    return [codes]


def depths(tokenizer, io):
    return sorted(int(k[10:]) for k in io if re.fullmatch(r"decoded_nq\d+", k))


def raw(tokenizer, tokens):
    return tokenizer.reconstruct(tokenizer.embed(tokens), tokens)


@torch.no_grad()
def test_latents_codes_and_waveforms(golden):
    published, tokenizer, io, _ = golden
    x = wave(io)
    close(tokenizer.latents(x), joined(io, "latent"))
    tokens = tokenizer.encode(x)
    for ours, theirs in zip(tokens.grids, published_grids(tokenizer, published, io), strict=True):
        assert torch.equal(ours, theirs)
    assert bool((tokens.kbps > 0).all())
    outputs = {f"decoded_nq{q}": q for q in depths(tokenizer, io)} or {
        name: None for name in ("decoded", "decoded_row0") if name in io
    }
    assert outputs
    for name, depth in outputs.items():
        sent = tokenizer.encode(x, num_quantizers=depth)
        out = raw(tokenizer, sent)
        close(out, io[name].view(out.shape))
        assert tokenizer.decode(sent).shape == x.shape
        if depth is not None:
            total = joined(io, f"quantized_nq{depth}")
            whole = tokenizer.embed(sent)
            # transformers keeps the vectors of the first chunk only
            close(whole[..., : total.shape[-1]], total)


@torch.no_grad()
def test_other_lengths(golden):
    """hop * n, one more, one less, shorter than a kernel."""
    published, tokenizer, io, _ = golden
    lengths = {int(k[6:].split(".")[0]) for k in io if re.fullmatch(r"length\d+\.codes", k)}
    x = wave(io)[:1]
    for length in lengths:
        codes, decoded = io[f"length{length}.codes"], io[f"length{length}.decoded"]
        if published["system"] == "DAC":  # transformers pads before the model, and here the model alone was called
            z = tokenizer.encoder(x[..., :length])
            assert torch.equal(tokenizer.quantizer(z).grids[0][:, : codes.shape[1]], codes)
            continue
        depth = codes.shape[1] if tokenizer.tail is not None else None
        tokens = tokenizer.encode(x[..., :length], num_quantizers=depth)
        assert torch.equal(tokens.codes[:, : codes.shape[1]], codes)
        out = raw(tokenizer, tokens)
        close(out, decoded.view(out.shape))
        assert tokenizer.decode(tokens).shape[-1] == length
    for length in (1, 2, tokenizer.hop * 3, tokenizer.hop * 3 + 1, tokenizer.hop * 3 - 1):
        tokens = tokenizer.encode(x[..., :length])
        assert tuple(g.shape[1:] for g in tokens.grids) == tokenizer.grid_shapes((length,))
        assert tokenizer.decode(tokens).shape[-1] == length


@torch.no_grad()
def test_batch_equals_singles(golden):
    _, tokenizer, io, _ = golden
    x = torch.cat([wave(io), wave(io).flip(-1) * 0.5])
    together = tokenizer.encode(x)
    decoded = tokenizer.decode(together)
    for index in range(len(x)):
        alone = tokenizer.encode(x[index : index + 1])
        assert all(torch.equal(a, b[index : index + 1]) for a, b in zip(alone.grids, together.grids, strict=True))
        assert torch.allclose(tokenizer.decode(alone), decoded[index : index + 1], atol=1e-4)


@torch.no_grad()
def test_files_carry_everything(golden):
    """Decoding what was read from .mmt bytes equals decoding the tokens."""
    _, tokenizer, io, _ = golden
    x = wave(io)[:1]
    for depth in [None, 1] if tokenizer.tail is not None else [None]:
        tokens = tokenizer.encode(x, num_quantizers=depth)
        again = unpack(pack(tokens), tokenizer)
        assert all(torch.equal(a, b) for a, b in zip(tokens.grids, again.grids, strict=True))
        assert torch.equal(tokenizer.decode(again), tokenizer.decode(tokens))


@torch.no_grad()
def test_chunks_equal_the_whole(golden):
    _, tokenizer, io, _ = golden
    if not tokenizer.causal:
        with pytest.raises(ValueError, match="cannot stream"):
            tokenizer.stream_state()
        return
    generator = torch.Generator().manual_seed(0)

    def cuts(total, most):
        while total > 0:
            n = int(torch.randint(0, most, (), generator=generator))
            yield min(n, total)
            total -= n

    x, hop = wave(io), tokenizer.hop
    for length in [x.shape[-1], hop * 9, hop * 9 + 1, hop * 9 - 1, 2, 1]:
        for depth in (None, 1):
            clip = x[..., :length]
            tokens = tokenizer.encode(clip, num_quantizers=depth)
            out = tokenizer.decode(tokens)
            state = tokenizer.stream_state(len(x), num_quantizers=depth)
            at, parts, heard = 0, [], 0
            for n in cuts(length, 3 * hop):
                at += n
                part, state = tokenizer.encode_chunk(clip[..., at - n : at], state, last=at == length)
                parts.append(part)
                heard += int(part.size[0, 0])
            assert heard == length
            assert torch.equal(torch.cat([p.codes for p in parts], -1), tokens.codes)
            pieces = []
            for index, part in enumerate(parts):
                piece, state = tokenizer.decode_chunk(part, state, last=index == len(parts) - 1)
                pieces.append(piece)
            together = torch.cat(pieces, -1)
            assert together.shape == out.shape and torch.allclose(together, out, atol=1e-4)


def test_every_published_key_is_accounted_for(golden):
    _, tokenizer, _, converted = golden
    published = set(converted.source.values()) | set(converted.dropped)
    assert len(converted.source) + len(converted.dropped) == len(published)
    own = set(tokenizer.state_dict()) - set(converted.source)
    # Mimi stores sums and counts; their ratio is the codebook
    computed = {key.replace("ema_sums", "codebook") for key in converted.source if "embed" in converted.source[key]}
    assert all(key.endswith(".usage") or key in computed for key in own)
    if tokenizer.tail is not None:
        assert converted.config["init_args"]["tail"]["init_args"]["coding"] == DEPTH


@torch.no_grad()
def test_folded_weight_norm_gives_the_same_and_unfolds(golden):
    _, tokenizer, io, _ = golden
    x = wave(io)[:1]
    before, keys = tokenizer.encode(x), set(tokenizer.state_dict())
    decoded = tokenizer.decode(before)
    networks = (tokenizer.encoder, tokenizer.decoder)
    names = [fold_weight_norm(network) for network in networks]
    assert not any(".parametrizations." in key for network in networks for key in network.state_dict())
    after = tokenizer.encode(x)
    assert all(torch.equal(a, b) for a, b in zip(before.grids, after.grids, strict=True))
    assert torch.allclose(tokenizer.decode(after), decoded, atol=1e-4)
    for network, folded in zip(networks, names, strict=True):
        unfold_weight_norm(network, folded)
    assert set(tokenizer.state_dict()) == keys
    assert torch.allclose(tokenizer.decode(tokenizer.encode(x)), decoded, atol=1e-4)


@torch.no_grad()
def test_noise_of_the_decoder(golden):
    """Given noise is added as published; a seed settles it, for each item alike."""
    _, tokenizer, io, _ = golden
    if "decoded_with_noise" not in io:
        return
    tokens = tokenizer.encode(wave(io))
    noise = [io[key] for key in sorted(io) if key.startswith("noise.")]
    assert [tuple(n.shape[1:]) for n in noise] == tokenizer.decoder.noise_shapes(tokens.grids[-1].shape[-1])
    close(tokenizer.decoder(tokenizer.embed(tokens), noise), io["decoded_with_noise"])
    assert torch.equal(tokenizer.decode(tokens, seed=3), tokenizer.decode(tokens, seed=3))
    assert not torch.equal(tokenizer.decode(tokens, seed=3), tokenizer.decode(tokens, seed=4))


def test_the_first_codebook_predicts_the_teacher(golden):
    _, tokenizer, io, _ = golden
    if "semantic_projection" not in io:
        return
    x = wave(io)
    z = tokenizer.latents(x)
    close(tokenizer.semantic(z, tokenizer.quantizer(z).grids), io["semantic_projection"])
    out = tokenizer(Batch.of(x))
    close(out.heads["semantic"], io["semantic_projection"])
    out.heads["semantic"].sum().backward()
    assert all(p.grad is not None for p in tokenizer.encoder.parameters())
    assert all(p.grad is None for p in tokenizer.decoder.parameters())


@torch.no_grad()
def test_inside_the_fourier_decoder(golden):
    _, tokenizer, io, _ = golden
    if "backbone_row0" not in io:
        return
    decoder = tokenizer.decoder
    z = io["quantized"]
    close(decoder.position(decoder.embed(z)), io["posnet"])
    close(decoder.features(z), io["backbone_row0"].transpose(1, 2))
    close(decoder(z, row=2)[:, 0], io["decoded_row2"])


@torch.no_grad()
def test_the_first_alias_free_activation(golden):
    _, tokenizer, io, converted = golden
    if "first_activation" not in io:
        return
    stem, stage = tokenizer.encoder.layers[:2]
    close(stage.layers[0].layers[0](stem(wave(io))), io["first_activation"])
    assert sum(reason.startswith("computed: Kaiser") for reason in converted.dropped.values()) > 4


def relative(actual, expected, bound=1e-4):
    """Within `bound` of the largest expected value."""
    assert actual.shape == expected.shape
    assert float((actual - expected).detach().abs().max()) <= bound * float(expected.abs().max())


def test_a_training_step_of_running_mean_codebooks(golden):
    """Values, commitment, its gradient and the codebooks after one step (EnCodec; Mimi's acoustic chain)."""
    _, tokenizer, io, _ = golden
    if "train.input" not in io:
        return
    quantizer = tokenizer.quantizer.rest if hasattr(tokenizer.quantizer, "rest") else tokenizer.quantizer
    chain = getattr(quantizer, "quantizer", quantizer)
    quantizer.train()
    z = io["train.input"].clone().requires_grad_()
    out = quantizer(z)
    close(out.z, io["train.quantized"])
    assert torch.equal(out.grids[0], io["train.codes"])
    relative(out.losses["commit"], io["train.penalty"])
    (gradient,) = torch.autograd.grad(out.losses["commit"], z, retain_graph=True)
    relative(gradient, io["train.penalty_grad"])
    if "train.probe" in io:
        (gradient,) = torch.autograd.grad((out.z * io["train.probe"]).sum(), z)
        relative(gradient, io["train.probe_grad"])
    names = {"embed": "codebook", "embed_avg": "ema_sums", "cluster_size": "ema_counts",
             "embedding_sum": "ema_sums", "cluster_usage": "ema_counts"}  # fmt: skip
    for index, depth in enumerate(chain.depths):
        after = {key.split(".")[-1]: io[key] for key in io if key.startswith(f"train.after.{index}.")}
        assert after
        for name, expected in after.items():
            relative(getattr(depth, names[name]), expected, 1e-5)


def test_losses_and_depth_drop_of_factorised_codebooks(golden):
    """DAC sums losses over depths; ours are means over the codes that are sent."""
    published, tokenizer, io, _ = golden
    if "depth.n_quantizers" not in io:
        return
    quantizer = tokenizer.quantizer.train()
    count = quantizer.num_quantizers
    z = io["latent"].clone().requires_grad_()
    out = quantizer(z)
    relative(out.losses["commit"] * count, io["commitment_loss"])
    relative(out.losses["codebook"] * count, io["codebook_loss"])
    weighted = (published["commitment_loss_weight"] * out.losses["commit"] + out.losses["codebook"]) * count
    second = quantizer.depths[1].quantizer.codebook
    gradients = torch.autograd.grad(weighted, [z, second], retain_graph=True)
    relative(gradients[0], io["grad.loss_latent"])
    relative(gradients[1], io["grad.loss_codebook1"])
    (gradient,) = torch.autograd.grad((out.z * io["grad.probe"]).sum(), z)
    relative(gradient, io["grad.probe_latent"])
    kept = io["depth.n_quantizers"]
    mask = (torch.arange(count) < kept[:, None])[..., None]
    dropped = quantizer(z, (mask,))
    close(dropped.z, io["depth.quantized"])
    mean = mask.float().sum(1).mean()
    relative(dropped.losses["commit"] * mean, io["depth.commitment_loss"])
    relative(dropped.losses["codebook"] * mean, io["depth.codebook_loss"])
