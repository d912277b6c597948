"""A codec without training: blocks of eight samples, quantized in four residual levels by vectors drawn from speech."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from mmtok.keep import Prefix
from mmtok.metrics.audio.evaluation import AudioEvaluation, AudioPlan
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


def voices():
    """name -> [T]: harmonic sounds of different lengths, 0.9 to 1.5 s, no multiples of the hop."""
    out = {}
    for i, (hertz, seconds) in enumerate(((110, 1.5), (180, 0.9), (240, 1.1))):
        t = torch.arange(int(RATE * seconds) + i) / RATE
        tone = sum(torch.sin(2 * torch.pi * hertz * k * t + k) / k for k in range(1, 12))
        noise = torch.randn(t.numel(), generator=torch.Generator().manual_seed(i))
        out[f"voice{i}"] = 0.08 * tone * (1 + torch.sin(2 * torch.pi * 4 * t)) + 0.003 * noise
    return out


def evaluate_share(rank, world, rendezvous, out):
    """One process of several that measure three voices and a silence together; writes what it holds in the end."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world)
    waves = voices()
    run = AudioEvaluation(codec(waves), AudioPlan((1, 4), ("stoi", "si_sdr"), ("opus",), samples=2))
    for key, wave in list({**waves, "quiet": torch.zeros(RATE)}.items())[rank::world]:
        run.update(key, wave[None])
    if rank == world - 1:
        run.skip("broken", "empty")
    result = run.finish()
    Path(out).write_text(json.dumps({**result.to_json(), "clips": [clip.key for clip in result.clips]}))
    if world > 1:
        dist.destroy_process_group()
