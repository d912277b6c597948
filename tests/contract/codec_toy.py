"""A codec without training: blocks of eight samples, quantized in four residual levels by vectors drawn from speech."""

import torch
from torch import nn

from mmtok.keep import Prefix
from mmtok.models.audio.codec import WaveCodec
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import UniformTail

HOP, RATE, LEVELS = 8, 16000, 4


class Blocks(nn.Module):
    """[B, 1, T] -> [B, HOP, F]."""

    stride, channels = HOP, 1

    def forward(self, x):
        return x.unflatten(-1, (-1, HOP)).transpose(1, 3)[..., 0]


class Unblocks(nn.Module):
    stride, channels = HOP, 1

    def forward(self, z):
        return z.transpose(1, 2).flatten(1)[:, None]


def codec(speech, size=64, seed=0):
    """Codebooks are residual vectors drawn from the speech itself, so that more levels mean less error."""
    torch.manual_seed(seed)
    residual = torch.cat([wave[: wave.numel() // HOP * HOP].view(-1, HOP) for wave in speech.values()])
    levels = []
    for _ in range(LEVELS):
        vq = VQ(HOP, size, ema_decay=0.9)
        loud = residual[residual.square().sum(1).argsort(descending=True)[: residual.shape[0] // 4]]
        book = loud[torch.randperm(len(loud))[: size - 1]]
        vq.load_state_dict({**vq.state_dict(), "codebook": torch.cat([torch.zeros(1, HOP), book])})
        residual = residual - vq.codebook[torch.cdist(residual, vq.codebook).argmin(1)]
        levels.append(vq)
    return WaveCodec(Blocks(), Residual(levels), Unblocks(), RATE, tail=UniformTail(Prefix(1))).eval()
