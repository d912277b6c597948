import pytest
import torch

from mmtok.nn.conv2d import Attention2d, ConvDecoder2d, ConvEncoder2d, ResBlock2d, StridedConv2d


def test_attention2d_equals_the_written_out_softmax():
    torch.manual_seed(0)
    block = Attention2d(8, groups=4)
    x = torch.randn(2, 8, 3, 5)
    y = block.norm(x)
    q, k, v = (p(y).flatten(2) for p in (block.q, block.k, block.v))
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 8**0.5, dim=-1)
    expected = x + block.out(torch.einsum("bij,bcj->bci", weights, v).view_as(x))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("on_branch", [False, True])
def test_where_the_width_changes_the_shortcut_reads_input_or_branch(on_branch):
    torch.manual_seed(0)
    block = ResBlock2d(4, 8, shortcut_on_branch=on_branch, groups=4)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    torch.nn.init.zeros_(block.shortcut.bias)
    out = block(torch.randn(1, 4, 6, 6))
    assert bool((out == 0).all()) == on_branch


def test_strided_conv_looks_right_and_down_only():
    down = StridedConv2d(1)
    torch.nn.init.zeros_(down.conv.bias)
    torch.nn.init.ones_(down.conv.weight)
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 2, 2] = 1
    assert down(x)[0, 0].tolist() == [[1, 1], [1, 1]]
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = 1
    assert down(x)[0, 0].tolist() == [[1, 0], [0, 0]]


def test_encoder_and_decoder_mirror_sizes():
    encoder = ConvEncoder2d(5, 8, (1, 2, 4), num_res_blocks=1, groups=4, in_channels=1)
    decoder = ConvDecoder2d(5, 8, (1, 2, 4), num_res_blocks=1, groups=4, out_channels=1)
    z = encoder(torch.randn(2, 1, 24, 16))
    assert z.shape == (2, 5, 6, 4)
    assert decoder(z).shape == (2, 1, 24, 16)
    widths = [level.blocks[-1].conv2.out_channels for level in decoder.levels]
    assert widths == [32, 16, 8]
