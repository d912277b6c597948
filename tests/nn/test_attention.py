import torch
from torch import nn

from mmtok.nn.attention import Attention, Transformer, TransformerBlock, key_mask


def test_attention_equals_torch_multihead_attention_with_padding():
    torch.manual_seed(0)
    theirs, ours = nn.MultiheadAttention(24, 4, batch_first=True), Attention(24, 4)
    ours.qkv.weight, ours.qkv.bias = theirs.in_proj_weight, theirs.in_proj_bias
    ours.out = theirs.out_proj
    x = torch.randn(3, 7, 24)
    valid = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    expected = theirs(x, x, x, key_padding_mask=~valid, need_weights=False)[0]
    torch.testing.assert_close(ours(x, key_mask(valid)), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], atol=1e-6, rtol=1e-5)


def test_block_equals_torch_pre_norm_encoder_layer():
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(16, 2, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    ours = TransformerBlock(16, 2)
    pairs = [
        (ours.norm1, theirs.norm1), (ours.norm2, theirs.norm2), (ours.attention.out, theirs.self_attn.out_proj),
        (ours.mlp.up, theirs.linear1), (ours.mlp.down, theirs.linear2),
    ]
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    ours.attention.qkv.weight, ours.attention.qkv.bias = theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-5)


def test_nothing_flows_from_masked_positions():
    torch.manual_seed(0)
    net = Transformer(16, 3, 2).eval()
    x = torch.randn(1, 6, 16)
    mask = key_mask(torch.arange(6)[None] < 4)
    other = x.clone()
    other[:, 4:] = 50.0
    torch.testing.assert_close(net(x, mask)[:, :4], net(other, mask)[:, :4], atol=1e-6, rtol=0)
    torch.testing.assert_close(net(x, mask)[:, :4], net(x[:, :4]), atol=1e-5, rtol=0)
