"""HiFi-GAN's networks as a codec: published size, causality, sizes, what an independent formula says."""

import pytest
import torch
import torch.nn.functional as F

from mmtok.models.audio.codec import WaveCodec
from mmtok.nn.hifigan import HiFiGANDecoder, HiFiGANEncoder, ResidualLayer
from mmtok.nn.snake import HalfSnake
from mmtok.nn.weight_norm import fold_weight_norm
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.split import Product


def test_published_size():
    """Counted on a public port of NanoCodec at 0.6 kbps, weights folded."""
    with torch.device("meta"):
        encoder, decoder = HiFiGANEncoder(16), HiFiGANDecoder(16)
    for network, count in ((encoder, 30_263_920), (decoder, 31_465_805)):
        normed = [m for m in network.modules() if hasattr(m, "parametrizations")]
        extra = sum(m.parametrizations.weight.original0.numel() for m in normed)
        assert sum(p.numel() for p in network.parameters()) - extra == count
    assert encoder.stride == decoder.stride == 1764


def test_residual_layer_equals_its_formula():
    torch.manual_seed(0)
    layer = ResidualLayer(4, half_snake=False, causal=True)
    fold_weight_norm(layer)
    x = torch.randn(1, 4, 30)
    total = 0
    for chain, kernel in zip(layer.chains, (3, 7, 11), strict=True):
        y = x
        for block, dilation in zip(chain, (1, 3, 5), strict=True):
            h = F.leaky_relu(y, 0.01)
            first, second = block.layers[1].conv, block.layers[3].conv
            h = F.conv1d(F.pad(h, ((kernel - 1) * dilation, 0)), first.weight, first.bias, dilation=dilation)
            y = y + F.conv1d(F.pad(F.leaky_relu(h, 0.01), (kernel - 1, 0)), second.weight, second.bias)
        total = total + y / 3
    torch.testing.assert_close(layer(x), total)


def test_half_snake():
    x = torch.randn(2, 4, 5)
    act = HalfSnake(4)
    torch.nn.init.constant_(act.snake.alpha, 2.0)
    expected = torch.cat([x[:, :2] + torch.sin(2 * x[:, :2]).square() / 2, F.leaky_relu(x[:, 2:], 0.01)], 1)
    torch.testing.assert_close(act(x), expected)


@pytest.mark.parametrize("samples", [1, 41, 42, 43, 420])
def test_codec_of_any_length(samples):
    torch.manual_seed(0)
    parts = HiFiGANEncoder(8, 4, [2, 3, 7]), HiFiGANDecoder(8, 16, [7, 3, 2])
    codec = WaveCodec(parts[0], Product([FSQ([9, 8, 8, 7]) for _ in range(2)]), parts[1], 22050).eval()
    x = torch.randn(2, 1, samples).clamp(-1, 1)
    tokens = codec.encode(x)
    assert tokens.codes.shape == (2, 2, -(-samples // 42)) and tokens.codebook_sizes == ((4032, 4032),)
    assert codec.decode(tokens).shape == x.shape
    torch.testing.assert_close(codec.decode(tokens[1]), codec.decode(tokens)[1:], atol=1e-4, rtol=1e-4)


def test_the_decoder_hears_no_later_frame():
    torch.manual_seed(0)
    z = torch.randn(1, 8, 6)
    later = z.clone()
    later[..., 4:] = 9
    for causal in (True, False):
        decoder = HiFiGANDecoder(8, 16, [7, 3, 2], causal=causal)
        same = torch.equal(decoder(z)[..., : 4 * 42], decoder(later)[..., : 4 * 42])
        assert same == causal
    with pytest.raises(ValueError, match="decoder.width must be a multiple of 8, got 12"):
        HiFiGANDecoder(8, 12, [7, 3, 2])
