"""Residual depth per block of frames for a wanted quality or rate: measured, block after block, in one encoder pass.

Legend: B batch, K codebooks, t blocks, n candidate depths.
"""

from __future__ import annotations

import math
from dataclasses import replace
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


@torch.no_grad()
def choose_depths(tok: Blockwise, x: Tensor, full: Tokens, target: Target, least: int = 1) -> Tensor:
    """int64 [B, t]: depth of every block of x [B, 3, T, H, W] whose codes at all depths are `full`.

    The first codes of a residual chain are an answer at every length, so every depth of a block is decoded from the
    state the earlier blocks left, compared with the frames, and `BlockPolicy` chooses; no later block is looked at. A
    rate is that of the whole: every block earns alike, also a first one of a single frame, on which the others build.
    ValueError where the rate is below that of `least` codes a position, or where frames come later than their codes.
    """
    batch, books, blocks, height, width = full.codes.shape
    bits = {math.log2(size) for size in full.codebook_sizes[0]}
    if len(bits) > 1:
        raise ValueError(f"target: codebooks of one size are needed, got {sorted(set(full.codebook_sizes[0]))}")
    lengths, pixels = tuple(range(least, books + 1)), x.shape[3] * x.shape[4]
    code_bits, block_bits = height * width * bits.pop(), math.log2(books)
    policy = BlockPolicy(target, lengths, least, code_bits, block_bits, tok.stride[0], pixels)
    state, chosen, start = tok.stream_state(batch), [], 0
    for block in range(blocks):
        end, last = min(x.shape[2], 1 + block * tok.stride[0]), block == blocks - 1
        size = torch.tensor([[end - start, *x.shape[3:]]] * batch)
        part = replace(full, grids=(full.codes[:, :, block : block + 1],), size=size)

        def decode(depth: Tensor, part: Tokens = part, state: Any = state, last: bool = last) -> tuple[Tensor, Any]:
            keep = (torch.arange(books, device=depth.device) < depth[:, None])[..., None, None, None]
            return tok.decode_chunk(replace(part, keep=(keep,)), state, last)

        tried = [decode(torch.full((batch,), depth, device=x.device)) for depth in lengths]
        if tried[0][0].shape[2] != end - start:
            raise ValueError("target: the decoder looks ahead, so no block can be measured when its codes are known")
        quality = torch.stack([psnr(x[:, :, start:end], y) for y, _ in tried], 1)
        depth, policy = policy.choose(quality, x.shape[2] / blocks)
        same = bool((depth == depth[0]).all())
        state = tried[lengths.index(int(depth[0]))][1] if same else decode(depth)[1]
        chosen.append(depth)
        start = end
    return torch.stack(chosen, 1)
