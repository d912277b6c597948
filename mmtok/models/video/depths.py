"""Residual depth per block of frames for a wanted quality or rate: measured, block after block, in one encoder pass.

Legend: B batch, K codebooks, t blocks, n candidate depths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mmtok.models.video.lengths import BlockPolicy, Target, psnr
from mmtok.types import Tokens


class Blockwise(Protocol):
    """A video tokenizer that decodes block by block; states are values."""

    stride: tuple[int, ...]

    def stream_state(self, batch: int = 1) -> Any: ...

    def decode_chunk(self, tokens: Tokens, state: Any, last: bool = False) -> tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class Choice:
    """What the choice of depths goes on from: `policy` for the next block, `state` that the decoder is in, and `earns`,
    frames that every block counts as (None: those that it has)."""

    policy: BlockPolicy
    state: Any
    earns: float | None = None


def begin(tok: Blockwise, full: Tokens, target: Target, least: int, pixels: int, earns: float | None) -> Choice:
    """Before the first block of videos of so many pixels a frame, codes at all depths as in `full`.

    earns  the mean of all blocks for a rate of the whole. None, when the end is not known, is a rate of what came so
           far: a first block of a single frame then has few codes, at least `least`.
    ValueError where the rate is below that of `least` codes a position.
    """
    books, _, height, width = full.codes.shape[1:]
    bits = {math.log2(size) for size in full.codebook_sizes[0]}
    if len(bits) > 1:
        raise ValueError(f"target: codebooks of one size are needed, got {sorted(set(full.codebook_sizes[0]))}")
    lengths, code_bits = tuple(range(least, books + 1)), height * width * bits.pop()
    policy = BlockPolicy(target, lengths, least, code_bits, math.log2(books), tok.stride[0], pixels)
    policy.check(tok.stride[0] if earns is None else earns)
    if earns is None:
        policy = replace(policy, credit=torch.zeros(len(full), dtype=torch.float64, device=full.codes.device))
    return Choice(policy, tok.stream_state(len(full)), earns)


@torch.no_grad()
def choose_next(
    tok: Blockwise, x: Tensor, full: Tokens, choice: Choice, begun: bool, last: bool
) -> tuple[Tensor, Choice]:
    """int64 [B, t]: depth of every block of the next frames x [B, 3, T, H, W] whose codes at all depths are `full`.

    The first codes of a residual chain are an answer at every length, so every depth of a block is decoded from the
    state the earlier blocks left, compared with the frames, and `BlockPolicy` chooses; no later block is looked at.
    ValueError where frames come later than their codes. begun: blocks came before; last: the video ends with x.
    """
    batch, books, blocks = full.codes.shape[:3]
    policy, state, chosen, start = choice.policy, choice.state, [], 0
    for block in range(blocks):
        end = min(x.shape[2], start + (tok.stride[0] if begun or block else 1))
        ends = last and block == blocks - 1
        size = torch.tensor([[end - start, *x.shape[3:]]] * batch)
        part = replace(full, grids=(full.codes[:, :, block : block + 1],), size=size)

        def decode(depth: Tensor, part: Tokens = part, state: Any = state, ends: bool = ends) -> tuple[Tensor, Any]:
            keep = (torch.arange(books, device=depth.device) < depth[:, None])[..., None, None, None]
            return tok.decode_chunk(replace(part, keep=(keep,)), state, ends)

        tried = [decode(torch.full((batch,), depth, device=x.device)) for depth in policy.lengths]
        if tried[0][0].shape[2] != end - start:
            raise ValueError("target: the decoder looks ahead, so no block can be measured when its codes are known")
        quality = torch.stack([psnr(x[:, :, start:end], y) for y, _ in tried], 1)
        depth, policy = policy.choose(quality, end - start if choice.earns is None else choice.earns)
        same = bool((depth == depth[0]).all())
        state = tried[policy.lengths.index(int(depth[0]))][1] if same else decode(depth)[1]
        chosen.append(depth)
        start = end
    return torch.stack(chosen, 1), Choice(policy, state, choice.earns)
