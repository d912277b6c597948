"""How far published codecs hear into the future: what a padded batch may change, as docs/audio.md states it."""

import pytest
import torch

from mmtok.models.audio.mimi import MimiEncoder
from mmtok.nn.dac import DACEncoder
from mmtok.nn.seanet import SEANetEncoder

# reach does not depend on widths, so they are small; frames that hear samples behind the end of their own
AHEAD = {
    "encodec_24k": (lambda: SEANetEncoder(dim=4, n_filters=4), 0),
    "mimi": (lambda: MimiEncoder(8, 2, layers=1, heads=2, hidden=8), 0),
    "dac_44k": (lambda: DACEncoder(4, [2, 4, 8, 8]), 8),
    "dac_24k": (lambda: DACEncoder(4, [2, 4, 5, 8]), 8),
    "snac_24k": (lambda: DACEncoder(4, [2, 4, 8, 8], depthwise=True), 10),
    "bigcodec": (lambda: DACEncoder(4, [2, 2, 2, 5, 5], alias_free=True, lstm=1), 25),
    "wavtokenizer_75": (lambda: SEANetEncoder(dim=4, n_filters=4, causal=False), 4),
    "wavtokenizer_40": (lambda: SEANetEncoder(dim=4, n_filters=4, ratios=[6, 5, 5, 4], causal=False), 4),
}


@pytest.mark.parametrize("name", AHEAD)
def test_frames_hear_as_far_as_stated(name):
    build, ahead = AHEAD[name]
    torch.manual_seed(0)
    encoder = build().eval()
    hop, frames, at = encoder.stride, ahead + 24, 10
    x = torch.randn(1, 1, hop * frames, requires_grad=True)
    encoder(x)[..., at].sum().backward()
    last = int(x.grad[0, 0].nonzero().max()) // hop
    assert last - at == ahead
    with torch.no_grad():  # a clip and the same clip with silence behind it agree up to there
        clip = x[..., : hop * (at + ahead + 1)]
        padded = torch.nn.functional.pad(clip, (0, hop * 5))
        torch.testing.assert_close(encoder(clip)[..., : at + 1], encoder(padded)[..., : at + 1], atol=1e-5, rtol=1e-4)
