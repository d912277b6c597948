"""VidTok and Cosmos DV against the reference: codes identical, reconstructions within the stated tolerance."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtok.hub import build
from mmtok.importers import cogvideox, cosmos, vidtok
from mmtok.importers.keymap import check_complete
from mmtok.types import Batch

ROOTS = [Path(__file__).parents[1] / "golden"] + [Path(p) for p in [os.environ.get("MMTOK_GOLDEN")] if p]


def folders(*systems):
    """Golden folders of these systems, each once: the larger set repeats the smaller one."""
    found = {name: root / "video" / name for root in ROOTS for name in systems if (root / "video" / name).is_dir()}
    return list(found.values())


def load(folder, family, published):
    state = load_file(folder / "weights.safetensors")
    converted = family.convert(state, family.facts(published(json.loads((folder / "config.json").read_text())), state))
    tokenizer = build(converted.config).eval()
    check_complete(converted.state, tokenizer.state_dict())
    tokenizer.load_state_dict(converted.state)
    used = set(converted.source.values()) | set(converted.dropped)
    assert used == set(state) and set(converted.source) == set(tokenizer.state_dict())
    return tokenizer, load_file(folder / "io.safetensors"), converted


def vidtok_yaml(golden):
    """The YAML that the published model of a golden config would have."""
    module = "model_3dcausal_v1_1" if golden["system"].endswith("v1.1") else "model_3dcausal"
    encoder = {"target": f"vidtok.modules.{module}.EncoderCausal3DPadding", "params": golden["encoder_decoder"]}
    regularizer = {"params": golden["regularizer"]}
    return {"model": {"params": {"encoder_config": encoder, "regularizer_config": regularizer}}}


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("folder", folders("vidtok_v1_0", "vidtok_v1_1"), ids=lambda f: f.name)
@torch.no_grad()
def test_vidtok(folder):
    tokenizer, io, _ = load(folder, vidtok, vidtok_yaml)
    x, image = io["x"], io["x"][:, :, :1]
    z = tokenizer.latents(x)
    close(z, io["encoder_out"], 5e-5)
    out = tokenizer.quantizer(z)
    close(out.z, io["z_q"], 1e-6)
    tokens = tokenizer.encode(x)
    assert torch.equal(tokens.codes[:, 0], io["indices"])
    recon = tokenizer.reconstruct(tokenizer.embed(tokens), tokens)
    close(recon, io["recon"], 5e-5)
    # annealed entropy term of the first step, and commitment; the reference clamps probabilities at 1e-5 in logarithms
    losses = out.losses
    aux = 0.3 * (losses["sample_entropy"] + losses["diversity"]) + 0.25 * losses["commit"]
    torch.testing.assert_close(aux.view(1), io["aux_loss"], atol=0, rtol=2e-4)
    close(tokenizer.latents(image), io["image_encoder_out"], 5e-5)
    tokens = tokenizer.encode(image)
    assert torch.equal(tokens.codes[:, 0], io["image_indices"])
    close(tokenizer.reconstruct(tokenizer.embed(tokens), tokens), io["image_recon_raw"][:, :, -1:], 5e-5)


@pytest.mark.parametrize("folder", folders(*cosmos.SYSTEMS), ids=lambda f: f.name)
@torch.no_grad()
def test_cosmos(folder):
    tokenizer, io, converted = load(folder, cosmos, lambda golden: golden["constructor"])
    for name, x in (("", io["x"]), ("image_", io["x"][:, :, :1])):
        close(tokenizer.latents(x), io[f"{name}pre_quant"], 2e-5)
        tokens = tokenizer.encode(x)
        assert torch.equal(tokens.codes[:, 0], io[f"{name}indices"])
        close(tokenizer.embed(tokens), io[f"{name}z_q"], 1e-6)
        close(tokenizer.reconstruct(tokenizer.embed(tokens), tokens), io[f"{name}recon"], 2e-5)
    # the two halves as they are published hold every weight, and tables that are known by name
    halves = json.loads((folder / "config.json").read_text())["jit_state_dict"]
    published = {key for half in ("encoder_jit", "decoder_jit") for key in halves[half]}
    mapped = cosmos.apply(dict.fromkeys(published, torch.zeros(1)), rules_of(converted.config))
    assert set(mapped.source) == set(converted.source)


def rules_of(config):
    args = config["init_args"]
    return cosmos.rules(*(args[side]["init_args"]["strides"] for side in ("encoder", "decoder")))


@pytest.mark.parametrize("folder", folders("cogvideox_vae"), ids=lambda f: f.name)
@torch.no_grad()
def test_cogvideox_in_one_piece_and_in_published_pieces(folder):
    tokenizer, io, _ = load(folder, cogvideox, lambda golden: golden["constructor"])
    x, z = io["x"], io["z"]
    close(tokenizer.latents(x), io["encoder_chunked"], 5e-5)
    close(tokenizer.quantizer(tokenizer.latents(x)).z, z, 5e-5)
    close(tokenizer.reconstruct(z, None), io["recon_chunked"], 5e-5)
    close(tokenizer(Batch.of(x)).x, io["recon_chunked"], 2e-4)
    with pytest.raises(ValueError, match="continuous"):
        tokenizer.stream_state()
    close(tokenizer.encoder(x), io["encoder_full"], 5e-5)
    close(tokenizer.decoder(z), io["recon_full"], 5e-5)
    close(tokenizer.latents(x[:, :, :1]), io["image_encoder_out"], 5e-5)
    close(tokenizer.reconstruct(io["image_encoder_out"][:, : z.shape[1]], None), io["image_recon"], 5e-5)
    # published: without a first frame that stands alone when the count is even
    for module in tokenizer.modules():
        if hasattr(module, "even_whole"):
            module.even_whole = True
    close(tokenizer.encoder(x[:, :, :8]), io["even_encoder_out"], 5e-5)
    close(tokenizer.decoder(io["even_encoder_out"][:, : z.shape[1]]), io["even_recon"], 5e-5)


@torch.no_grad()
def test_cogvideox_takes_every_duration():
    """Five frames are two latents, and five frames again, whatever their parity."""
    published = {
        "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "latent_channels": 2, "norm_num_groups": 4,
        "temporal_compression_ratio": 4,
    }  # fmt: skip
    with pytest.raises(ValueError, match="lacks latent_channels"):
        cogvideox.facts({k: v for k, v in published.items() if k != "latent_channels"}, {})
    tokenizer = build(cogvideox.convert({}, cogvideox.facts(published, {})).config).eval()
    for frames, latents in ((1, 1), (2, 2), (5, 2), (13, 4), (18, 6)):
        x = torch.rand(1, 3, frames, 9, 16) * 2 - 1
        assert tokenizer.latents(x).shape == (1, 4, latents, 2, 2)
        assert tokenizer(Batch.of(x)).x.shape == x.shape
