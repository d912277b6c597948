import pytest
import torch

from mmtok.models.image.conv import ConvTokenizer
from mmtok.nn.conv2d import AveragePool2d, ConvDecoder2d, ConvEncoder2d
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.vq import VQ
from mmtok.types import Batch

LAYOUTS = {
    "taming": {"attn_levels": (2,)},
    "maskgit": {"mid_attention": False, "bias": False, "shortcut_on_branch": True},
}


def make(layout="taming", quantizer=None, quant_conv=True, recompute=False, **encoder):
    torch.manual_seed(0)
    shared = {"channels": 8, "channel_mult": (1, 2, 2), "groups": 4, "gradient_checkpointing": recompute}
    shared |= LAYOUTS[layout]
    quantizer = quantizer or VQ(6, 32)
    first, last = ConvEncoder2d(6, num_res_blocks=1, **shared, **encoder), ConvDecoder2d(6, num_res_blocks=2, **shared)
    return ConvTokenizer(first, quantizer, last, size=(32, 32), quant_conv=quant_conv)


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (1, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_size_and_decode_of_encode_is_the_forward_pass(layout, size):
    tok = make(layout, downsample=AveragePool2d if layout == "maskgit" else None).eval()
    x = torch.rand(2, 3, *size) * 2 - 1
    tokens = tok.encode(x)
    assert tokens.codes.shape == (2, 1, -(-size[0] // 4), -(-size[1] // 4))
    recon = tok.decode(tokens)
    assert recon.shape == x.shape
    torch.testing.assert_close(recon, tok(Batch.of(x)).x.clamp(-1, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(tok.decode(tok.encode(x[1:])), recon[1:], atol=1e-4, rtol=0)


def test_spec_counts_codes_and_bits():
    spec = make(quantizer=FSQ([8, 8, 4])).spec
    assert (spec.tokens, spec.bits, spec.stride) == (64, 64 * 8, (4, 4))


def test_channels_last_gives_the_same_image():
    tok = make().eval()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    plain = tok(Batch.of(x)).x
    tok = tok.to(memory_format=torch.channels_last)
    torch.testing.assert_close(tok(Batch.of(x.to(memory_format=torch.channels_last))).x, plain, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        tok = make(recompute=recompute).train()
        tok.quantizer.revival = 0.0
        torch.manual_seed(1)
        out = tok(Batch.of(torch.rand(2, 3, 16, 16)))
        (out.x.square().mean() + sum(out.losses.values())).backward()
        gradients.append({name: p.grad for name, p in tok.named_parameters()})
    for name in gradients[0]:
        assert gradients[0][name] is not None
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="channel_mult the same length"):
        ConvTokenizer(ConvEncoder2d(6, 8, (1, 1), groups=4), VQ(6, 8), ConvDecoder2d(6, 8, (1, 1, 1), groups=4))
    with pytest.raises(ValueError, match="quant_conv: true"):
        make(quantizer=VQ(5, 8), quant_conv=False)
    with pytest.raises(ValueError, match="levels 0 to 1"):
        ConvEncoder2d(6, 8, (1, 1), attn_levels=(2,), groups=4)
