"""Published codecs built on the meta device: parameter counts, rates, lengths of codes."""

import math

import pytest
import torch

from mmtok.keep import Prefix
from mmtok.models.audio.codec import WaveCodec
from mmtok.models.audio.distilled import DistilledCodec
from mmtok.models.audio.mimi import MimiDecoder, MimiEncoder
from mmtok.models.audio.segmented import SegmentedCodec
from mmtok.models.audio.snac import SNAC
from mmtok.nn.dac import DACDecoder, DACEncoder
from mmtok.nn.seanet import SEANetDecoder, SEANetEncoder
from mmtok.nn.vocos import VocosDecoder
from mmtok.quantizers.projected import Projected
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.split import SplitResidual
from mmtok.quantizers.strided import StridedResidual
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import ChoiceTail, PartialTail, UniformTail


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


def speechtokenizer():
    sizes = {"dim": 1024, "n_filters": 64, "causal": False}
    encoder = SEANetEncoder(**sizes, bidirectional=True)
    return DistilledCodec(encoder, residual(8, 1024, 1024), SEANetDecoder(**sizes), 16000, semantic_dim=768)


def factorised(count, size, dim):
    return [Projected(VQ(8, size, cosine=True, revival=0.0), dim) for _ in range(count)]


def dac(strides, count, rate):
    networks = DACEncoder(strides=strides, dim=1024), DACDecoder(strides=strides[::-1])
    quantizer = Residual(factorised(count, 1024, 1024), through=True)
    return WaveCodec(networks[0], quantizer, networks[1], rate, PartialTail(0.5, Prefix(1)))


def dac_44k():
    return dac([2, 4, 8, 8], 9, 44100)


def dac_24k():
    return dac([2, 4, 5, 8], 32, 24000)


def dac_16k():
    return dac([2, 4, 5, 8], 12, 16000)


def snac(rate, width, decoder_width, strides, levels, window):
    shared = {"depthwise": True, "window": window}
    encoder = DACEncoder(width, strides, **shared)
    decoder = DACDecoder(encoder.dim, decoder_width, strides[::-1], noise=True, output_padding=True, **shared)
    return SNAC(encoder, StridedResidual(factorised(len(levels), 4096, encoder.dim), levels), decoder, rate, window)


def snac_24k():
    return snac(24000, 48, 1024, [2, 4, 8, 8], [4, 2, 1], None)


def snac_44k():
    return snac(44100, 64, 1536, [2, 3, 8, 8], [8, 4, 2, 1], 32)


def wavtokenizer(ratios):
    encoder = SEANetEncoder(dim=512, ratios=ratios, causal=False)
    hop = encoder.stride
    decoder = VocosDecoder(512, n_fft=4 * hop, hop=hop, conditions=4, position=True)
    return WaveCodec(encoder, VQ(512, 4096, ema_decay=0.99), decoder, 24000, end="layers")


def wavtokenizer_75():
    return wavtokenizer([8, 5, 4, 2])


def wavtokenizer_40():
    return wavtokenizer([6, 5, 5, 4])


def mimi():
    rest = Residual([VQ(256, 2048, ema_decay=0.99) for _ in range(31)])
    parts = (Projected(part, 512, weight_norm=False, bias=False) for part in (VQ(256, 2048, ema_decay=0.99), rest))
    tail = UniformTail(Prefix(1), per_batch=True)
    return WaveCodec(MimiEncoder(), SplitResidual(*parts), MimiDecoder(), 24000, tail)


def bigcodec():
    shared = {"dim": 1024, "alias_free": True, "lstm": 2}
    encoder = DACEncoder(48, [2, 2, 2, 5, 5], **shared)
    decoder = DACDecoder(width=1536, strides=[5, 5, 2, 2, 2], output_padding=True, **shared)
    return WaveCodec(encoder, factorised(1, 8192, 1024)[0], decoder, 16000)


PUBLISHED = {  # builder: (million parameters, to this precision, Hz of frames, kbps)
    encodec_24k: (14.85, 0.005, 75, 24.0),
    encodec_48k: (14.85, 0.02, 150, 24.0),
    speechtokenizer: (103.68, 0.005, 50, 4.0),
    dac_44k: (76.62, 0.05, 44100 / 512, 7.752),
    dac_24k: (74.71, 0.05, 75, 24.0),
    dac_16k: (74.1, 0.08, 50, 6.0),
    wavtokenizer_75: (80.56 - 8.80, 0.03, 75, 0.9),  # without the decoder that is saved, but never used
    wavtokenizer_40: (80.9 - 8.80, 0.05, 40, 0.48),
    mimi: (79.31, 0.01, 12.5, 4.4),
    bigcodec: (159, 0.6, 80, 1.04),
    snac_24k: (19.84, 0.02, 24000 / 512, 0.984),
    snac_44k: (54.5, 0.05, 44100 / 384, 2.584),
}


@pytest.mark.parametrize("build", PUBLISHED, ids=lambda build: build.__name__)
def test_parameters_and_rates(build):
    millions, precision, frames, kbps = PUBLISHED[build]
    with torch.device("meta"):
        codec = build()
    count = sum(p.numel() for p in codec.parameters()) / 1e6
    assert abs(count - millions) <= precision, count
    spec = codec.spec
    assert spec.kbps == pytest.approx(kbps, abs=1e-3) and spec.modality == "audio" and spec.rate == codec.sample_rate
    assert codec.sample_rate / codec.hop == frames
    count = codec.grid_shapes((codec.sample_rate,))[-1][1]
    extra = 2 if isinstance(codec, SegmentedCodec) else 0  # the overlap's last 10 ms are a segment of their own
    assert count == math.ceil(math.ceil(frames) / codec.frame_multiple) * codec.frame_multiple + extra
