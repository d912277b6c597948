"""A tail-drop image tokenizer without training: quantized DCT coefficients, low frequencies first.

Every prefix decodes, quality grows with length, and real pictures come out, so evaluation can be tested on it.
"""

import math

import torch
from torch import nn

from mmtok.quantizers.fsq import FSQ
from mmtok.taildrop import UniformTail
from mmtok.tokenizer import Tokenizer

SIDE, TOKENS = 32, 64


def dct(size):
    """Orthonormal DCT-II, [frequency, position]."""
    position = torch.arange(size) + 0.5
    matrix = torch.cos(math.pi / size * torch.arange(size)[:, None] * position) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


class Dct(nn.Module):
    def __init__(self):
        super().__init__()
        rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        order = (rows + columns + rows / SIDE).flatten().argsort()[:TOKENS]
        self.register_buffer("order", order)
        self.register_buffer("matrix", dct(SIDE))
        scale = SIDE * 0.6 / (1 + (rows + columns).flatten()[order] * 1.2)
        self.register_buffer("scale", scale.float())


class Encoder(Dct):
    def forward(self, x):
        return (self.matrix @ x @ self.matrix.T).flatten(2)[..., self.order] / self.scale


class Decoder(Dct):
    def forward(self, z, keep):
        flat = torch.zeros(*z.shape[:2], SIDE * SIDE)
        flat[..., self.order] = torch.atanh(z.clamp(-0.97, 0.97)) * self.scale
        return self.matrix.T @ flat.view(*z.shape[:2], SIDE, SIDE) @ self.matrix


class DctTokenizer(Tokenizer):
    """32 x 32 images, 64 tokens of 9 bits; whole-image codes, so positions do not follow from the stride."""

    def __init__(self):
        super().__init__(Encoder(), FSQ([9, 8, 8]), Decoder(), (SIDE, SIDE), (SIDE, SIDE), UniformTail())

    def positions(self, size):
        return (TOKENS,)
