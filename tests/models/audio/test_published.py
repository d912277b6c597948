"""Published codecs built on the meta device: parameter counts, rates, lengths of codes."""

import pytest
import torch

from mmtok.keep import Prefix
from mmtok.models.audio.codec import WaveCodec
from mmtok.models.audio.segmented import SegmentedCodec
from mmtok.nn.seanet import SEANetDecoder, SEANetEncoder
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import ChoiceTail


def residual(count, size, dim):
    return Residual([VQ(dim, size, ema_decay=0.99) for _ in range(count)], through=True)


def encodec_24k():
    tail = ChoiceTail([2, 4, 8, 16, 32], Prefix(1), per_batch=True)
    return WaveCodec(SEANetEncoder(), residual(32, 1024, 128), SEANetDecoder(), 24000, tail, end="layers")


def encodec_48k():
    sizes = {"channels": 2, "causal": False, "norm": "time_group_norm"}
    tail = ChoiceTail([2, 4, 8, 16], Prefix(1), per_batch=True)
    networks = SEANetEncoder(**sizes), residual(16, 1024, 128), SEANetDecoder(**sizes)
    return SegmentedCodec(*networks, 48000, segment=48000, tail=tail)


PUBLISHED = {  # builder: (million parameters, to this precision, Hz of frames, kbps)
    encodec_24k: (14.85, 0.005, 75, 24.0),
    encodec_48k: (14.85, 0.02, 150, 24.0),
}


@pytest.mark.parametrize("build", PUBLISHED, ids=lambda build: build.__name__)
def test_parameters_and_rates(build):
    millions, precision, frames, kbps = PUBLISHED[build]
    with torch.device("meta"):
        codec = build()
    count = sum(p.numel() for p in codec.parameters()) / 1e6
    assert abs(count - millions) <= precision, count
    spec = codec.spec
    assert spec.kbps == pytest.approx(kbps) and spec.modality == "audio" and spec.rate == codec.sample_rate
    assert codec.sample_rate / codec.hop == frames
    extra = 2 if isinstance(codec, SegmentedCodec) else 0  # the overlap's last 10 ms are a segment of their own
    frames = -(-frames // codec.frame_multiple) * codec.frame_multiple
    assert codec.grid_shapes((codec.sample_rate,))[0][1] == frames + extra
