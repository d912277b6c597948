"""Fourier head and Vocos decoder: against torch's inverse transform, in pieces, clipped, without look-ahead."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtok.importers.keymap import apply
from mmtok.importers.wavtokenizer import VOCOS, vocos_sizes
from mmtok.nn.istft import ISTFTHead
from mmtok.nn.stream import Stream
from mmtok.nn.streaming_transformer import BLOCK, StreamingTransformer
from mmtok.nn.vocos import VocosDecoder


def pieces(module, x, sizes):
    stream, out = Stream(), []
    for part in x.split(sizes, -1):
        stream = stream.next()
        out.append(module(part, stream))
    return torch.cat(out, -1)


def spectrum(head, x):
    log_magnitude, phase = head.linear(x.transpose(1, 2)).transpose(1, 2).chunk(2, 1)
    return torch.polar(log_magnitude.exp().clamp(max=100.0), phase)


@torch.no_grad()
def test_center_is_torchs_inverse_transform():
    head = ISTFTHead(6, 40, 10, "center")
    x = torch.randn(2, 6, 12)
    expected = torch.istft(spectrum(head, x), 40, 10, window=torch.hann_window(40), center=True)
    torch.testing.assert_close(head(x)[:, 0], expected)


@torch.no_grad()
def test_same_gives_every_frame_a_hop_and_agrees_inside():
    same, center = ISTFTHead(6, 40, 10, "same"), ISTFTHead(6, 40, 10, "center")
    center.load_state_dict(same.state_dict())
    x = torch.randn(1, 6, 12)
    assert same(x).shape == (1, 1, 120)
    # centred frames begin 5 samples later in the overlap-add: the half hop that "same" keeps at both ends
    torch.testing.assert_close(same(x)[..., 5:-5], center(x)[..., :110])


@torch.no_grad()
def test_magnitudes_are_clipped():
    head = ISTFTHead(1, 8, 2)
    head.linear.weight.zero_()
    head.linear.bias.fill_(50.0)
    assert bool(torch.isfinite(head(torch.zeros(1, 1, 5))).all())


@torch.no_grad()
def test_a_causal_decoder_in_pieces_equals_the_whole():
    torch.manual_seed(0)
    decoder = VocosDecoder(4, 8, 16, 2, n_fft=40, hop=10, padding="causal", conditions=3, causal=True).eval()
    z = torch.randn(2, 4, 25)
    whole = decoder(z)
    assert decoder.causal and whole.shape == (2, 1, 250)
    for sizes in ([25], [1] * 25, [3, 0, 10, 12]):
        torch.testing.assert_close(pieces(decoder, z, sizes), whole)
    later = z.clone()
    later[..., 20:] = 0
    assert torch.equal(decoder(later)[..., :200], whole[..., :200])
    # past the fade-in, dividing by the steady envelope is the exact inverse
    same = VocosDecoder(4, 8, 16, 2, n_fft=40, hop=10, padding="same", conditions=3, causal=True).eval()
    same.load_state_dict(decoder.state_dict())
    torch.testing.assert_close(same(z)[..., 30 - 15 : 200 - 15], whole[..., 30:200])


def test_mistakes():
    with pytest.raises(ValueError, match="position"):
        VocosDecoder(4, 32, 16, 1, position=True, causal=True)
    with pytest.raises(ValueError, match="only causal"):
        ISTFTHead(4, 8, 2)(torch.zeros(1, 4, 3), Stream())
    with pytest.raises(ValueError, match="twice the hop"):
        ISTFTHead(4, 8, 6)


@torch.no_grad()
def test_the_transformer_sees_its_window_and_no_more():
    torch.manual_seed(0)
    model = StreamingTransformer(8, 1, 2, 16, window=5, scale=1.0)
    x = torch.randn(1, 8, 30)
    changed = x.clone()
    changed[..., 10] *= -1
    moved = (model(x) - model(changed)).abs().amax((0, 1)) > 1e-6
    assert moved.nonzero()[:, 0].tolist() == [10, 11, 12, 13, 14]


@torch.no_grad()
def test_the_transformer_in_blocks_and_pieces():
    torch.manual_seed(0)
    model = StreamingTransformer(8, 2, 2, 16, window=7, scale=1.0)
    x = torch.randn(2, 8, BLOCK + 50)
    whole = model(x)  # two blocks
    torch.testing.assert_close(pieces(model, x, [1, 0, 500, BLOCK - 451]), whole, atol=1e-4, rtol=1e-4)
    stream = Stream()
    model(x, stream)
    assert all(keys.shape[2] == 6 for keys, _, _ in stream.memory.values())  # bounded, whatever was heard


def published(name):
    """(config, io, VocosDecoder with the published weights) of a golden folder."""
    folder = Path(__file__).parents[1] / "golden/audio" / name
    config = json.loads((folder / "config.json").read_text())
    state, io = load_file(folder / "weights.safetensors"), load_file(folder / "io.safetensors")
    network = {key: value for key, value in state.items() if not key.startswith("feature_extractor.")}
    padding = config.get("head_padding", config.get("padding"))
    decoder = VocosDecoder(**vocos_sizes(network), hop=config["hop_length"], padding=padding).eval()
    mapped = apply(network, VOCOS).state
    decoder.load_state_dict({key.removeprefix("decoder."): value for key, value in mapped.items()})
    return config, io, decoder, state


@torch.no_grad()
def test_the_published_vocoder_of_mel_spectrograms():
    _, io, decoder, _ = published("vocos_mel")
    torch.testing.assert_close(decoder.features(io["mel"]), io["backbone"].transpose(1, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(decoder(io["mel"])[:, 0], io["decoded"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_published_vocoder_of_encodec_codes():
    """One row of the adaptive norms a bandwidth; features are sums of codebook rows."""
    config, io, decoder, state = published("vocos_encodec")
    tables = state["feature_extractor.codebook_weights"].unflatten(0, (-1, config["codebook_size"]))
    for row, count in enumerate(config["num_codebooks_per_bandwidth"]):
        codes = io[f"bandwidth{row}.codes"]
        assert codes.shape[1] == count
        z = sum(tables[k][codes[:, k]] for k in range(count)).transpose(1, 2)
        torch.testing.assert_close(decoder(z, row=row)[:, 0], io[f"bandwidth{row}.decoded"], atol=1e-4, rtol=0)
