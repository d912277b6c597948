import pytest
import torch

from mmtok.keep import Prefix
from mmtok.models.image.titok import TiTok, TiTokDecoder, TiTokEncoder
from mmtok.models.image.titok_proxy import ProxyTiTok, SoftPixels
from mmtok.nn.conv2d import ConvDecoder2d
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import UniformTail
from mmtok.types import Batch

N, SIDE = 12, 16


def make(tail=None, proxy=None, pixels=None, quantizer=None, recompute=False):
    torch.manual_seed(0)
    quantizer = quantizer or VQ(6, 64, l2_norm=True)
    vit = {"num_latents": N, "image_size": SIDE, "patch": 4, "width": 32, "layers": 2, "heads": 4}
    encoder = TiTokEncoder(quantizer.dim, **vit, gradient_checkpointing=recompute)
    decoder = TiTokDecoder(quantizer.dim, **vit, proxy_codes=proxy, gradient_checkpointing=recompute)
    tok = ProxyTiTok(encoder, quantizer, decoder, pixels, tail) if proxy else TiTok(encoder, quantizer, decoder, tail)
    with torch.no_grad():  # fresh weights are so small that latents hardly move the image: every test would pass
        for parameter in [*encoder.parameters(), *decoder.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return tok


def pixel_decoder(codes):
    return SoftPixels(codes, ConvDecoder2d(8, channels=8, channel_mult=(1, 1, 1), num_res_blocks=1, groups=4))


def images(batch, height=SIDE, width=SIDE, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("quantizer", [None, FSQ([5, 5, 5, 5])], ids=["vq", "fsq"])
def test_shapes_and_decode_of_encode_is_the_forward_pass(quantizer):
    tok = make(UniformTail(), quantizer=quantizer).eval()
    x = images(3)
    tokens = tok.encode(x)
    assert tokens.codes.shape == (3, 1, N)
    torch.testing.assert_close(tok.decode(tokens), tok(Batch.of(x)).x.clamp(-1, 1), atol=1e-5, rtol=0)


def test_mask_equals_truncation_for_every_length():
    """A batch of mixed lengths goes through the mask, items alone through the shorter sequence."""
    tok = make(UniformTail()).eval()
    full = tok.encode(images(N))
    keep = Prefix(-1).masks(torch.arange(N)[:, None], full.shapes)
    z = tok.embed(full)
    mixed = tok.decoder(z, keep)
    for i in range(N):
        alone = tok.decoder.decode_tiles(z[i : i + 1, :, : i + 1])
        torch.testing.assert_close(mixed[i : i + 1], alone, atol=1e-5, rtol=0)
        tokens = tok.encode(images(N)[i : i + 1], num_tokens=i + 1)
        torch.testing.assert_close(tok.decode(tokens), alone.clamp(-1, 1), atol=1e-5, rtol=0)


def test_prefix_means_the_tail_is_never_read_and_every_kept_code_matters():
    tok = make(UniformTail()).eval()
    z = tok.latents(images(2))
    keep = tok.keep_for(z, 5)[0]
    other = z.clone()
    other[..., 5:] = 100.0
    assert torch.equal(tok.decoder(z, keep), tok.decoder(other, keep))
    other = z.clone()
    other[..., 4] += 1.0
    assert not torch.allclose(tok.decoder(z, keep), tok.decoder(other, keep), atol=1e-2)


def test_batched_equals_single():
    tok = make(UniformTail()).eval()
    x = images(4)
    tokens = tok.encode(x, num_tokens=7)
    for i in range(4):
        single = tok.encode(x[i : i + 1], num_tokens=7)
        assert torch.equal(single.codes, tokens[i].codes)
        torch.testing.assert_close(tok.decode(single), tok.decode(tokens)[i : i + 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (9, 16), (17, 16), (16, 40), (35, 33)])
def test_any_size_is_padded_tiled_and_cropped_back(size):
    tok = make(UniformTail()).eval()
    x = images(2, *size)
    tokens = tok.encode(x, num_tokens=3)
    assert tok.grid_shapes(size) == tokens.shapes
    tiles = -(-size[0] // SIDE) * -(-size[1] // SIDE)
    assert tokens.codes.shape == (2, 1, N) if tiles == 1 else tokens.codes.numel() == 2 * tiles * N
    assert tokens.num_sent.tolist() == [3 * tiles] * 2
    assert tok.decode(tokens).shape == x.shape
    torch.testing.assert_close(tok.decode(tokens)[1:], tok.decode(tok.encode(x[1:], num_tokens=3)), atol=1e-4, rtol=0)


def test_tiles_are_coded_as_images_of_their_own_in_reading_order():
    tok = make(UniformTail()).eval()
    x = images(2, 2 * SIDE, 3 * SIDE)
    codes = tok.encode(x).codes
    assert codes.shape == (2, 1, 2, 3, N)
    recon = tok.decode(tok.encode(x))
    for row in range(2):
        for column in range(3):
            place = (..., slice(row * SIDE, (row + 1) * SIDE), slice(column * SIDE, (column + 1) * SIDE))
            tile = tok.encode(x[place])
            assert torch.equal(tile.codes, codes[:, :, row, column])
            torch.testing.assert_close(tok.decode(tile), recon[place], atol=1e-4, rtol=0)


def test_tiles_of_items_with_different_lengths_equal_items_alone():
    tok = make(UniformTail()).eval()
    z = tok.latents(images(3, 2 * SIDE, SIDE))
    shapes = tok.quantizer.shapes(tuple(z.shape[2:]))
    keep = Prefix(-1).masks(torch.tensor([[0], [4], [N - 1]]), shapes)
    mixed = tok.decoder(z, keep)
    for i in range(3):
        alone = tok.decoder(z[i : i + 1], (keep[0][i : i + 1],))
        torch.testing.assert_close(mixed[i : i + 1], alone, atol=1e-5, rtol=0)


def test_half_precision_and_compiled_parts_run_with_lengths_per_item():
    tok = make(UniformTail()).train()
    tok.quantizer.revival = 0.0
    whole = tok(Batch.of(images(4)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(3)
        half = tok(Batch.of(images(4)))
        (half.x.float().square().mean() + half.losses["commit"]).backward()
    assert whole.x.dtype == torch.float32
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in tok.parameters())
    tok.eval()
    tokens = tok.encode(images(4), num_tokens=5)
    expected = tok.decode(tokens)
    tok.decoder.compile(backend="eager")
    tok.encoder.compile(backend="eager")
    for length in (5, 7, 5):
        assert tok.decode(tok.encode(images(4), num_tokens=length)).shape == expected.shape
    torch.testing.assert_close(tok.decode(tokens), expected, atol=1e-5, rtol=0)


def test_training_draws_a_length_per_item_and_reaches_every_parameter():
    tok = make(UniformTail()).train()
    torch.manual_seed(1)
    out = tok(Batch.of(images(8, 2 * SIDE, SIDE)))
    assert len(set(out.tokens.num_sent.tolist())) > 1
    (out.x.square().mean() + sum(out.losses.values())).backward()
    unused = [name for name, p in tok.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert unused == []


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        tok = make(recompute=recompute).train()
        tok.quantizer.revival = 0.0
        tok(Batch.of(images(2))).x.square().mean().backward()
        gradients.append({name: p.grad for name, p in tok.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_stage_1_gives_logits_and_no_image():
    tok = make(UniformTail(), proxy=20)
    out = tok(Batch.of(images(2, SIDE, 2 * SIDE)))
    assert out.x is None
    assert out.heads["proxy_logits"].shape == (2, 20, 4, 8)
    with pytest.raises(ValueError, match="stage 2"):
        tok.decode(tok.encode(images(1)))


def test_stage_2_image_is_the_pixel_decoder_of_the_mean_code():
    tok = make(UniformTail(), 20, pixel_decoder(20)).eval()
    x = images(2)
    out = tok(Batch.of(x))
    torch.testing.assert_close(tok.decode(tok.encode(x)), out.x.clamp(-1, 1), atol=1e-5, rtol=0)
    sharp = torch.zeros(2, 20, 4, 4)
    sharp[:, 7] = 1e4
    code = tok.pixels.codebook[7].expand(2, 4, 4, -1).movedim(-1, 1)
    torch.testing.assert_close(tok.pixels(sharp), tok.pixels.decoder(code))


def test_sizes_that_do_not_fit_are_named():
    vit = {"image_size": SIDE, "patch": 4, "width": 32, "layers": 1, "heads": 4}
    with pytest.raises(ValueError, match="num_latents"):
        TiTok(TiTokEncoder(6, 4, **vit), VQ(6, 8), TiTokDecoder(6, 5, **vit))
    with pytest.raises(ValueError, match="quantizer.dim"):
        TiTok(TiTokEncoder(6, 4, **vit), VQ(5, 8), TiTokDecoder(6, 4, **vit))
    with pytest.raises(ValueError, match="ProxyTiTok"):
        TiTok(TiTokEncoder(6, 4, **vit), VQ(6, 8), TiTokDecoder(6, 4, **vit, proxy_codes=9))
    with pytest.raises(ValueError, match="codebook_size is 21"):
        make(proxy=20, pixels=pixel_decoder(21))
    with pytest.raises(ValueError, match="multiple of patch"):
        TiTokEncoder(6, 4, image_size=18, patch=4)
    with pytest.raises(ValueError, match="not divisible by 5 heads"):
        TiTokEncoder(6, 4, image_size=16, patch=4, width=32, heads=5)
