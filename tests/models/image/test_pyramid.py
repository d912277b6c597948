"""The pyramid tokenizer: sizes, prefixes, and the thumbnail it starts from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmtok import Batch
from mmtok.keep import FlatPrefix
from mmtok.models.image.pyramid import PyramidDecoder, PyramidEncoder, PyramidTokenizer
from mmtok.quantizers.multiscale import MultiScale
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import UniformTail


def make() -> PyramidTokenizer:
    torch.manual_seed(0)
    quantizer = MultiScale([VQ(6, 32), VQ(6, 32), VQ(6, 32)], [4, 2, 1])
    encoder, decoder = PyramidEncoder(6, (8, 8, 16), (1, 1, 1)), PyramidDecoder(3, 6, (8, 8, 8, 16), (1, 1, 1, 1))
    return PyramidTokenizer(encoder, quantizer, decoder, (64, 64), UniformTail(FlatPrefix()))


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (33, 100), (17, 129)])
def test_any_size_comes_back_in_that_size(size) -> None:
    model = make().eval()
    x = torch.rand(1, 3, *size) * 2 - 1
    tokens = model.encode(x)
    assert tokens.shapes == model.grid_shapes(size)
    assert model.decode(tokens).shape == x.shape


def test_batched_equals_single_and_decode_of_encode_equals_forward() -> None:
    model = make().eval()
    x = torch.rand(3, 3, 64, 48) * 2 - 1
    tokens = model.encode(x)
    recon = model.decode(tokens)
    torch.testing.assert_close(recon, model(Batch.of(x)).x.clamp(-1, 1))
    for i in range(3):
        one = model.encode(x[i : i + 1])
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(one.grids, tokens.grids, strict=True))
        torch.testing.assert_close(model.decode(one), recon[i : i + 1], atol=1e-4, rtol=0)


def test_every_prefix_decodes_and_is_the_head_of_the_full_code() -> None:
    model = make().eval()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    full = model.encode(x)
    for length in range(1, 22):
        tokens = model.encode(x, num_tokens=length)
        assert tokens.num_sent.tolist() == [length, length]
        assert all(torch.equal(g, f * m) for g, f, m in zip(tokens.grids, full.grids, tokens.keep, strict=True))
        assert torch.isfinite(model.decode(tokens)).all()
    with pytest.raises(ValueError, match="1 to 21"):
        model.encode(x, num_tokens=22)


def test_an_untrained_decoder_shows_the_thumbnail_of_its_latents() -> None:
    model = make().eval()
    x = F.interpolate(torch.rand(1, 3, 4, 4), size=(64, 64), mode="nearest")
    z = model.latents(x)
    thumbnail = F.avg_pool2d(x, 16)
    torch.testing.assert_close(z[:, :3] / 3, thumbnail)
    keep = tuple(torch.ones(1, 1, *shape[1:], dtype=torch.bool) for shape in model.grid_shapes((64, 64)))
    z = F.pad(thumbnail * 3, (0, 0, 0, 0, 0, 3))
    expected = F.interpolate(thumbnail, scale_factor=16.0, mode="bicubic")
    torch.testing.assert_close(model.decoder(z, keep), expected)


def test_learned_channels_cannot_shrink() -> None:
    encoder = PyramidEncoder(6, (8, 8, 16), (1, 1, 1)).train()
    with torch.no_grad():
        encoder.out.weight.mul_(0.1)
    z = encoder(torch.rand(8, 3, 64, 64) * 2 - 1)
    torch.testing.assert_close(z[:, 3:].std((0, 2, 3), unbiased=False), torch.ones(3), atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="encoder.dim"):
        PyramidEncoder(3)


def test_training_draws_a_length_per_item_and_reaches_every_part() -> None:
    model = make().train()
    out = model(Batch.of(torch.rand(8, 3, 64, 64) * 2 - 1))
    assert len(set(out.tokens.num_sent.tolist())) > 1
    (out.x.square().mean() + sum(out.losses.values())).backward()
    # the output convolution starts at zero, so in the first step it alone hides the decoder's inner gradients
    assert model.decoder.out.weight.grad.abs().sum() > 0
    assert model.encoder.stem.weight.grad.abs().sum() > 0
