"""How long a stream waits: samples heard before samples come out again, as docs/audio.md states it in milliseconds."""

import pytest
import torch

from mmtok.models.audio.codec import WaveCodec
from mmtok.models.audio.mimi import MimiDecoder, MimiEncoder
from mmtok.nn.seanet import SEANetDecoder, SEANetEncoder
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.vq import VQ

# waiting does not depend on widths, so they are small
SMALL = {"layers": 1, "heads": 2, "hidden": 8}
CODECS = {
    "encodec_24k": (SEANetEncoder(dim=8, n_filters=2), SEANetDecoder(dim=8, n_filters=2), "layers", 13.3, 7),
    "mimi": (MimiEncoder(8, 2, **SMALL), MimiDecoder(8, 2, **SMALL), "zeros", 80.0, 1),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
def test_a_frame_goes_in_and_comes_out(name):
    encoder, decoder, end, milliseconds, first = CODECS[name]
    codec = WaveCodec(encoder, Residual([VQ(8, 16)]), decoder, 24000, end=end).eval()
    assert 1000 * codec.hop / codec.sample_rate == pytest.approx(milliseconds, abs=0.05)
    state, heard = codec.stream_state(), []
    for _ in range(10):
        tokens, state = codec.encode_chunk(0.1 * torch.randn(1, 1, codec.hop), state)
        audio, state = codec.decode_chunk(tokens, state)
        heard.append(audio.shape[-1] / codec.hop)
    assert heard == [0] * (first - 1) + [first] + [1] * (10 - first)
