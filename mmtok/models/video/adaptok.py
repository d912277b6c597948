"""AdapTok (arXiv 2505.17011): LARP that is causal over blocks, with tail drop per block and a learned scorer.

Legend: B batch, T frames, t blocks, th tw tiles, R = B th tw, N latents of a block, n scores of a block, W width,
D code dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.models.video.blocks import BlockStream
from mmtok.models.video.larp import LARP
from mmtok.models.video.lengths import (
    BPP,
    BlockPolicy,
    Target,
    choices,
    psnr,
    read_target,
    search_psnr,
    search_rate,
)
from mmtok.models.video.prior import CodePrior
from mmtok.nn.block_attention import BlockTransformer
from mmtok.nn.latent_query import LatentQueryDecoder, LatentQueryEncoder
from mmtok.nn.stream import Stream
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import Length, TailDrop
from mmtok.types import Batch, Reconstruction, Tokens


@dataclass(frozen=True)
class ScoredStream(BlockStream):
    """`BlockStream` with what chooses the lengths: `scorer` remembers the blocks as they were cut."""

    policy: BlockPolicy | None = None
    scorer: Stream | None = None
    target: Target | None = None


class AdapTok(LARP):
    """Codes [B, 1, t, N] (or with tiles) of which every block sends its own prefix; side information is counted.

    `encode(x, num_tokens=n)` or one n a block; `encode(x, target=...)` with "32dB", "0.02bpp", `PSNR` or `BPP` of
    `mmtok.models.video.lengths`: the scorer predicts the quality of every prefix in the same pass, and each block's
    length depends on nothing that comes later. "32dB exact" measures instead of predicting (many decodings).

    tail          needed; holds the `BlockPrefix` coding
    scorer        predicts the quality of prefixes; None: targets are searched
    train_scorer  `forward` trains the scorer alone: freeze the rest (`model.freeze`). Loss `scorer`
    """

    def __init__(
        self, encoder: LatentQueryEncoder, quantizer: Quantizer, decoder: LatentQueryDecoder, tail: TailDrop,
        prior: CodePrior | None = None, scorer: PrefixScorer | None = None, train_scorer: bool = False,
        unit_range: bool = True,
    ) -> None:
        super().__init__(encoder, quantizer, decoder, prior, tail, unit_range)
        if train_scorer and (scorer is None or scorer.measure != "psnr"):
            raise ValueError("tokenizer.train_scorer: needs a tokenizer.scorer with measure psnr")
        self.scorer = scorer
        self.train_scorer = train_scorer

    # ---- use --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, x: Tensor | Batch, *, num_tokens: Length | None = None, num_quantizers: int | None = None,
        target: Target | float | str | None = None,
    ) -> Tokens:
        """As `Tokenizer.encode`; `num_tokens` an int or one a block, `target` a quality or a rate."""
        batch = x if isinstance(x, Batch) else Batch.of(x)
        if target is None:
            self._check_media(batch.x)
            z = self.latents(batch.x)
            keep, coding = self.keep_for(z, num_tokens, num_quantizers)
            return self.tokens(self.quantize(z, keep), keep, coding, batch)
        if num_tokens is not None:
            raise ValueError("encode: num_tokens and target both set the length; give one")
        wanted = read_target(target)
        if wanted.exact or self.scorer is None:
            return self.encode(batch, num_tokens=self.search(batch, wanted))
        state = self.stream_state(len(batch.x), target=wanted)
        tokens, _ = self.encode_chunk(batch.x, state, last=True)
        return replace(tokens, size=batch.size, rate=batch.rate)

    @torch.no_grad()
    def search(self, batch: Batch, target: Target) -> Tensor:
        """int64 [B, t]: lengths found by decoding every candidate: the slow reference for `target`."""
        self._check_media(batch.x)
        z = self.latents(batch.x)
        step = self.scorer.step if self.scorer is not None else max(1, self.encoder.num_latents // 16)
        lengths = choices(self._least, self.encoder.num_latents, step)
        blocks, frames = z.shape[2], self.stride[0]

        def measure(block: int, length: int, before: Tensor) -> Tensor:
            asked = torch.cat([before, before.new_full((len(before), 1), length)], 1)
            keep, coding = self.keep_for(z[:, :, : block + 1], asked)
            size = batch.size.clone()
            size[:, 0] = size[:, 0].clamp(max=(block + 1) * frames)
            part = self.tokens(self.quantize(z[:, :, : block + 1], keep), keep, coding, replace(batch, size=size))
            y = self._from_model(self.reconstruct(self.embed(part), part), part)
            return psnr(batch.x[:, :, block * frames : y.shape[2]], y[:, :, block * frames :])

        if isinstance(target, BPP):
            policy = self._policy(target, batch.x)
            pixels = batch.size.prod(1).to(z.device, torch.float64)
            most = (target.rate * pixels - blocks * policy.block_bits) / policy.code_bits
            if bool((most < blocks * lengths[0]).any()):
                raise ValueError(f"target: {target.rate} bpp is less than {lengths[0]} codes a block cost")
            return search_rate(measure, blocks, lengths, most)
        return search_psnr(measure, blocks, lengths, torch.full((len(z),), target.db, device=z.device))

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """As LARP; with `train_scorer`, one random length a block and the PSNR it really gives."""
        if not self.train_scorer:
            return super().forward(batch, progress)
        assert self.scorer is not None
        with torch.no_grad():
            features = self.encoder.features(self._to_model(batch.x))
            z = self.encoder.to_codes(features)
            lengths = torch.tensor(choices(self.scorer.step, self.encoder.num_latents, self.scorer.step))
            draw = torch.randint(len(lengths), (len(z), z.shape[2]))
            keep, coding = self.keep_for(z, lengths[draw])
            quantized = self.quantize(z, None)  # type: ignore[arg-type]
            tokens = self.tokens(quantized, keep, coding, batch)
            x = self._from_model(self.reconstruct(self.embed(tokens), tokens), tokens)
            pairs = zip(batch.x.split(self.stride[0], 2), x.split(self.stride[0], 2), strict=True)
            truth = torch.stack([psnr(a, b) for a, b in pairs], 1)
        scores = self._score(features, quantized.z, keep[0])
        found = scores.gather(2, draw.to(scores.device)[..., None])[..., 0]
        loss = F.mse_loss(found, truth)
        return Reconstruction(x, tokens, {"scorer": loss / self.scorer.std**2}, stats=quantized.stats)

    # ---- streaming --------------------------------------------------------------------------------------------------

    def stream_state(
        self, batch: int = 1, num_tokens: int | None = None, target: Target | float | str | None = None
    ) -> ScoredStream:
        """Fresh state for both directions; every block sends `num_tokens` codes, or what the target asks for."""
        wanted = None if target is None else read_target(target)
        if wanted is not None and (self.scorer is None or wanted.exact):
            raise ValueError("stream_state(target=...): needs a tokenizer.scorer; a search cannot stream")
        return ScoredStream(batch, num_tokens, Stream(), Stream(), scorer=Stream(), target=wanted)

    @torch.no_grad()
    def encode_chunk(self, x: Tensor, state: BlockStream, last: bool = False) -> tuple[Tokens, BlockStream]:
        """As `LARP.encode_chunk`; with a target each block's length is chosen as it comes."""
        if not isinstance(state, ScoredStream) or state.target is None:
            return super().encode_chunk(x, state, last)
        assert self.scorer is not None and state.scorer is not None
        x, gathered = self.gather(x, state, last)
        assert isinstance(gathered, ScoredStream)
        if not x.shape[2]:
            return self.no_tokens(x), gathered
        encoder, scorer = state.encoder.next(last), state.scorer.next(last)
        features = self.encoder.features(self._to_model(self.whole(x, state)), encoder, state.coded)
        z = self.encoder.to_codes(features)
        full = self.quantize(z, None)  # type: ignore[arg-type]
        policy = state.policy or self._policy(state.target, x)
        lengths = []
        for block in range(z.shape[2]):
            place = (state.coded + block) % self.encoder.blocks
            if place == 0:
                scorer.memory.clear()
            at = slice(block, block + 1)
            quality = self._score(features[:, :, :, at], full.z[:, :, at], None, scorer, place)[:, 0]
            real = min(self.stride[0], x.shape[2] - block * self.stride[0])
            length, policy = policy.choose(quality, real)
            kept = torch.arange(self.encoder.num_latents, device=length.device) < length[:, None]
            tiles = features.shape[1] * features.shape[2]
            self.scorer.transformer.choose(kept.repeat_interleave(tiles, 0), scorer)
            lengths.append(length)
        keep, coding = self.keep_for(z, torch.stack(lengths, 1))
        tokens = self.tokens(full, keep, coding, Batch.of(x))
        coded = state.coded + z.shape[2]
        return tokens, replace(gathered, encoder=encoder, scorer=scorer, policy=policy, coded=coded)

    # ---- lengths ----------------------------------------------------------------------------------------------------

    @property
    def _least(self) -> int:
        assert self.tail is not None
        return self.tail.min_length

    def _policy(self, target: Target, x: Tensor) -> BlockPolicy:
        """A fresh policy for pictures of the size of x."""
        tiles = math.prod(-(-n // s) for n, s in zip(x.shape[3:], self.stride[1:], strict=True))
        (books,) = self.quantizer.codebook_sizes
        bits = tiles * sum(math.log2(v) for v in books)
        step = self.scorer.step if self.scorer is not None else 1
        lengths = tuple(choices(step, self.encoder.num_latents, step))
        pixels = x.shape[3] * x.shape[4]
        return BlockPolicy(
            target, lengths, self._least, bits, math.log2(self.encoder.num_latents), self.stride[0], pixels
        )

    def _score(
        self, features: Tensor, z: Tensor, keep: Tensor | None, stream: Stream | None = None, place: int = 0
    ) -> Tensor:
        """[B, t, n]: predicted quality, higher is better, mean over tiles."""
        assert self.scorer is not None
        batch, high, wide, total = features.shape[:4]
        z = z.reshape(*z.shape[:2], total, high, wide, -1).permute(0, 3, 4, 2, 5, 1)
        pair = torch.cat([features, self.decoder.embed(z)], -1).flatten(0, 2)
        seen = None
        if keep is not None:
            seen = keep[:, 0].reshape(len(keep), keep.shape[2], -1, keep.shape[-1])
            seen = seen.expand(batch, total, high * wide, z.shape[4]).transpose(1, 2).flatten(0, 1)
        parts = [
            self.scorer(pair[:, a:b], at, None if seen is None else seen[:, a:b], stream)
            for a, b, at in self.encoder.pieces(total, place)
        ]
        return torch.cat(parts, 1).unflatten(0, (batch, high * wide)).mean(1)


class PrefixScorer(nn.Module):
    """Transformer over latents and their codes that predicts, every `step` latents, how good the prefix will be.

    in_width     of encoder and decoder together
    num_latents, blocks, width, layers, heads: as in the encoder
    step         a prediction every so many latents
    measure      "psnr": outputs are decibels, (dB - mean) / std inside. "lpips": a distance, as published
    mean, std    of the measure over the training data, about
    own_visible  False: latents that are dropped are hidden from their own block too, as published
    """

    def __init__(
        self, in_width: int, num_latents: int, blocks: int, width: int = 768, layers: int = 12, heads: int = 12,
        step: int = 64, measure: str = "psnr", mean: float = 25.0, std: float = 5.0, own_visible: bool = True,
    ) -> None:
        super().__init__()
        if num_latents % step:
            raise ValueError(f"scorer.step: {num_latents} latents are not a multiple of {step}")
        if measure not in ("psnr", "lpips"):
            raise ValueError(f"scorer.measure: psnr or lpips, got {measure!r}")
        self.step, self.measure, self.mean, self.std = step, measure, mean, std
        self.project = nn.Linear(in_width, width)
        self.positions = nn.Parameter(torch.randn(blocks, num_latents, width) * 0.02)
        self.transformer = BlockTransformer(width, layers, heads, 4 * width, own_visible=own_visible)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, 1))

    def forward(
        self, pair: Tensor, place: int = 0, keep: Tensor | None = None, stream: Stream | None = None
    ) -> Tensor:
        """pair [R, t, N, in_width], `place` the first block's in its segment, keep bool [R, t, N] -> [R, t, n]."""
        y = self.project(pair) + self.positions[place : place + pair.shape[1]]
        y = self.transformer(y, keep=keep, stream=stream)[:, :, self.step - 1 :: self.step]
        y = self.head(self.norm(y))[..., 0] * self.std + self.mean
        return y if self.measure == "psnr" else -y
