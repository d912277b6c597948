"""Codecs whose codes carry features of a frozen speech model beside the sound (X-Codec, arXiv 2408.17175; X-Codec-2,
2502.04128).

Legend: B batch, T samples, F frames, A channels of the sound, E channels of the speech model, M channels of the
adapter, D latent channels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.models.audio.codec import WaveCodec
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop
from mmtok.types import Batch, Reconstruction


class SemanticCodec(WaveCodec):
    """x [B, 1, T] -> join(adapter(speech features), encoder(x)) -> codes -> decoder(sound(z)).

    encoder   x [B, 1, T] -> [B, A, F]; has `dim`
    adapter   [B, E, F] -> [B, M, F]; has `dim`
    frontend  frozen: x [B, 1, T] at `sample_rate`, T a multiple of the hop -> [B, F, E]. It is saved with the weights,
              stays in eval mode and is trained by nothing. None: every batch brings features
    meaning   [B, E, F] -> [B, E, F], has `dim`: tells the features from the codes while training, for the loss
              `semantic`, a mean square over frames that lie inside their clips. None: no such loss
    features  name of precomputed features in `Batch.features` [B, F or more, E], taken in place of the frontend's
    """

    def __init__(
        self, encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module, adapter: nn.Module,
        sample_rate: int = 16000, frontend: nn.Module | None = None, meaning: nn.Module | None = None,
        tail: TailDrop | None = None, features: str = "semantic",
    ) -> None:
        super().__init__(encoder, quantizer, decoder, sample_rate, tail)
        self.adapter = adapter
        self.frontend = frontend
        self.features = features
        self.join = nn.Linear(int(adapter.dim) + int(encoder.dim), quantizer.dim)  # type: ignore[arg-type]
        self.sound = nn.Linear(quantizer.dim, int(decoder.dim))  # type: ignore[arg-type]
        self.meaning = meaning
        self.tell = None if meaning is None else nn.Linear(quantizer.dim, int(meaning.dim))  # type: ignore[arg-type]

    def latents(self, x: Tensor) -> Tensor:
        """z [B, D, F] before the quantizer; ValueError where there is no frontend."""
        return self.latents_of(Batch.of(x))

    def latents_of(self, batch: Batch) -> Tensor:
        """z [B, D, F] before the quantizer."""
        x = self._to_model(batch.x)
        sound = self.encoder(x)
        given = self._features(batch, x, sound.shape[-1])
        joined = torch.cat([self.adapter(given.transpose(1, 2)), sound], 1)
        return self.join(joined.transpose(1, 2)).transpose(1, 2)

    def reconstruct(self, z: Tensor, tokens: object) -> Tensor:
        """[B, D, F] -> [B, 1, about F * hop]."""
        return self.decoder(self.sound(z.transpose(1, 2)).transpose(1, 2))

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """See `Tokenizer.forward`; adds the loss `semantic` where there is a `meaning`."""
        if self.meaning is None or self.tell is None:
            return super().forward(batch, progress)
        x = self._to_model(batch.x)
        target = self._features(batch, x, x.shape[-1] // self.hop)
        batch = replace(batch, features={**batch.features, self.features: target})  # heard once
        quantized, tokens = self.code(batch)
        out = self._from_model(self.reconstruct(quantized.z, tokens), tokens)
        told = self.meaning(self.tell(quantized.z.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)
        each = F.mse_loss(told.float(), target, reduction="none").mean(-1)
        if batch.lengths is not None:
            frames = (batch.lengths // self.hop).clamp(min=1).to(x.device)[:, None]
            inside = torch.arange(each.shape[1], device=x.device) < frames
            each = each * inside / inside.sum().clamp(min=1) * inside.numel()
        losses = quantized.losses | {"semantic": each.mean()}
        return Reconstruction(out, tokens, losses, stats=quantized.stats)

    @torch.no_grad()
    def _features(self, batch: Batch, x: Tensor, frames: int) -> Tensor:
        """float32 [B, F, E]; x is `batch.x` padded to whole frames."""
        if self.features in batch.features:
            found = batch.features[self.features]
            if found.shape[1] < frames:
                raise ValueError(
                    f"batch.features[{self.features!r}] holds {found.shape[1]} frames, this clip has {frames}: compute"
                    f" them at {self.sample_rate / self.hop:g} frames a second"
                )
            return found[:, :frames].float().to(x.device)
        if self.frontend is None:
            raise ValueError(
                f"encode: this codec came without its speech model: bring batch.features[{self.features!r}]"
                " [B, frames, channels]"
            )
        with torch.autocast(x.device.type, enabled=False):
            return self.frontend(x.float())


class ConvAdapter(nn.Module):
    """X-Codec's semantic encoder, or with `mirrored` its decoder: [B, E, F] -> [B, E, F], ELU, kernels of 3."""

    def __init__(self, dim: int = 768, blocks: int = 2, units: int = 2, mirrored: bool = False) -> None:
        super().__init__()
        self.dim = dim
        layers: list[nn.Module] = [nn.Conv1d(dim, dim, 3, padding=1, bias=False)]
        for _ in range(blocks):
            inner: list[nn.Module] = [_EluUnit(dim) for _ in range(units)]
            conv = nn.Conv1d(dim, dim, 3, padding=1)
            layers += [conv, *inner] if mirrored else [*inner, conv]
        if mirrored:
            layers.append(nn.Conv1d(dim, dim, 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ResidualAdapter(nn.Module):
    """X-Codec-2's semantic encoder and decoder: [B, inputs, F] -> [B, outputs, F], a ReLU block between convolutions.

    dim is what the network around it asks for: of the encoder its outputs, of the decoder its inputs (`mirrored`).
    """

    def __init__(self, inputs: int = 1024, outputs: int = 1024, hidden: int = 1024, mirrored: bool = False) -> None:
        super().__init__()
        self.dim = inputs if mirrored else outputs
        self.first = nn.Conv1d(inputs, hidden, 3, padding=1, bias=False)
        self.inner1 = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.inner2 = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.last = nn.Conv1d(hidden, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # the published block rectifies its input in place: what is added is rectified too
        x = F.relu(self.first(x))
        return self.last(x + self.inner2(F.relu(self.inner1(x))))


class _EluUnit(nn.Module):
    """x + conv1(elu(conv3(elu(x)))), no biases."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(dim, dim, 3, padding=1, bias=False)
        self.conv2 = nn.Conv1d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.elu(self.conv1(F.elu(x))))
