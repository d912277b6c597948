"""Transformer that is causal over blocks of tokens, for whole sequences and for streams.

Legend: B batch, N blocks, L tokens of a block, M of them memory (the first ones), D width, H heads, W window.

Inside a block everybody sees everybody; of earlier blocks only the memory tokens are seen. With one token a block
this is an ordinary causal transformer. Sources: ElasticTok (arXiv 2410.08368), AdapTok (arXiv 2505.17011).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmtok.kernels.attention import attention
from mmtok.nn.attention import MLP
from mmtok.nn.stream import Causal, Stream
from mmtok.nn.window_attention import rotary_angles, rotate_halves

TOKENS = 1 << 13  # longer sequences run block by block, so that no mask of their length squared is made


@dataclass(frozen=True)
class Past:
    """What a transformer remembers of earlier blocks: how many there were; bool [B, P, M]: which are seen."""

    blocks: int
    seen: Tensor


class BlockTransformer(Causal):
    """x [B, N, L, D] -> the same; block n sees blocks n - window + 1 to n.

    hidden             width inside the MLP
    memory_sees_local  memory tokens see the local tokens of their own block (else only other memory)
    own_visible        tokens that are not kept are still seen inside their own block
    window             W in blocks, None: all of the past. A stream remembers the memory of W - 1 blocks
    gated              RMSNorm and SwiGLU without biases, instead of LayerNorm and GELU with them (never in q, k, v)
    rope_base          rotary positions by a token's index in the whole sequence, halves of a head's channels paired
    dropout            of attention weights and of both branches, while training
    bias               q, k and v have biases too
    """

    def __init__(
        self, dim: int, layers: int, heads: int, hidden: int, memory_sees_local: bool = True, own_visible: bool = False,
        window: int | None = None, gated: bool = False, rope_base: float | None = None, dropout: float = 0.0,
        bias: bool = False, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"transformer.window: at least one block, got {window}")
        self.layers = nn.ModuleList(
            BlockLayer(dim, heads, hidden, gated, rope_base, dropout, bias) for _ in range(layers)
        )
        self.memory_sees_local, self.own_visible, self.window = memory_sees_local, own_visible, window
        self.gradient_checkpointing = gradient_checkpointing

    def forward(
        self, x: Tensor, memory: int | None = None, keep: Tensor | None = None, stream: Stream | None = None,
        wanted: int | None = None,
    ) -> Tensor:
        """A whole sequence, or the next blocks of one.

        memory  M, None: all tokens
        keep    bool [B, N, M]: memory tokens that others may see; a token always sees itself
        wanted  only the last so many tokens of each block are returned; the last layer computes no others
        """
        _, count, length, _ = x.shape
        wanted = length if wanted is None else wanted
        memory = length if memory is None else memory
        if count > 1 and count * length > TOKENS and not (self.training and torch.is_grad_enabled()):
            walk = Stream() if stream is None else stream
            parts = [
                self._run(x[:, i : i + 1], memory, None if keep is None else keep[:, i : i + 1], walk, wanted)
                for i in range(count)
            ]
            return torch.cat(parts, 1)
        return self._run(x, memory, keep, stream, wanted)

    def choose(self, keep: Tensor, stream: Stream) -> None:
        """Says afterwards which memory tokens of the last block are kept, bool [B, M]: how later blocks see it."""
        past: Past = stream.memory[self]
        if past.seen.shape[1]:
            stream.memory[self] = Past(past.blocks, torch.cat([past.seen[:, :-1], keep[:, None]], 1))

    def _run(self, x: Tensor, memory: int, keep: Tensor | None, stream: Stream | None, wanted: int) -> Tensor:
        batch, count, length, _ = x.shape
        past = Past(0, x.new_ones(batch, 0, memory, dtype=torch.bool))
        if stream is not None:
            past = stream.memory.get(self, past)
        mask = self._mask(past, count, length, memory, keep)
        y = x.flatten(1, 2)
        kept = None if self.window is None else (self.window - 1) * memory
        for layer in self.layers:
            shape = (count, length, memory, wanted if layer is self.layers[-1] else length)
            if self.gradient_checkpointing and self.training and y.requires_grad and stream is None:
                y = checkpoint(layer, y, mask, shape, past.blocks, kept, None, use_reentrant=False)
            else:
                y = layer(y, mask, shape, past.blocks, kept, stream)
        if stream is not None:
            now = x.new_ones(batch, count, memory, dtype=torch.bool) if keep is None else keep
            seen = torch.cat([past.seen, now], 1)
            if self.window is not None:
                seen = seen[:, max(0, seen.shape[1] - self.window + 1) :]
            stream.memory[self] = Past(past.blocks + count, seen)
        return y.unflatten(1, (count, wanted))

    def _mask(self, past: Past, count: int, length: int, memory: int, keep: Tensor | None) -> Tensor | None:
        """bool [B or 1, 1, N L, P M + N L]; None where everybody sees everybody."""
        before = past.seen.shape[1]
        plain = keep is None and bool(past.seen.all())
        if count == 1 and plain and (memory == length or self.memory_sees_local):
            return None
        device = past.seen.device
        place = torch.arange(length, device=device).repeat(count)
        block = torch.arange(count, device=device).repeat_interleave(length)
        old = torch.arange(-before, 0, device=device).repeat_interleave(memory)
        key_block = torch.cat([old, block])
        key_memory = torch.cat([torch.ones_like(old, dtype=torch.bool), place < memory])
        behind = block[:, None] - key_block
        ahead = behind >= 0 if self.window is None else (behind >= 0) & (behind < self.window)
        own = behind == 0
        asks = torch.ones_like(place, dtype=torch.bool) if self.memory_sees_local else place >= memory
        mask = torch.where(key_memory, ahead, own & asks[:, None])[None]
        if not plain:
            now = past.seen.new_ones(past.seen.shape[0], count, length)
            if keep is not None:
                now[..., :memory] = keep
            seen = torch.cat([past.seen.flatten(1), now.flatten(1)], 1)[:, None]
            itself = torch.eye(count * length, dtype=torch.bool, device=device)
            itself = F.pad(itself, (before * memory, 0)) | (own if self.own_visible else torch.zeros_like(own))
            mask = mask & (seen | itself)
        return mask[:, None]


class BlockLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); norms with eps 1e-5."""

    def __init__(
        self, dim: int, heads: int, hidden: int, gated: bool, rope_base: float | None, dropout: float, bias: bool
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"transformer: width {dim} is not divisible by {heads} heads")
        self.heads, self.rope_base, self.dropout = heads, rope_base, dropout
        self.norm1 = nn.RMSNorm(dim, eps=1e-5) if gated else nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=not gated)
        self.norm2 = nn.RMSNorm(dim, eps=1e-5) if gated else nn.LayerNorm(dim)
        self.mlp = GatedMLP(dim, hidden) if gated else MLP(dim, hidden)

    def forward(
        self, x: Tensor, mask: Tensor | None, shape: tuple[int, int, int, int], start: int, kept: int | None,
        stream: Stream | None,
    ) -> Tensor:
        """x [B, N L, D] -> [B, N E, D] of the last E tokens of each block.

        shape (N, L, M, E), start the blocks that came before, kept the memory tokens a stream holds
        """
        branch = self._attend(self.norm1(x), mask, shape, start, kept, stream)
        x = _ends(x, shape) + self._drop(branch)
        return x + self._drop(self.mlp(self.norm2(x)))

    def _attend(
        self, x: Tensor, mask: Tensor | None, shape: tuple[int, int, int, int], start: int, kept: int | None,
        stream: Stream | None,
    ) -> Tensor:
        count, length, memory, _ = shape
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.rope_base is not None:
            places = torch.arange(start * length, (start + count) * length, device=x.device)
            angles = rotary_angles(places, q.shape[-1], self.rope_base)
            q, k = rotate_halves(q, angles), rotate_halves(k, angles)
        if stream is not None:
            old_k, old_v = stream.memory.get(self, (k[:, :, :0], v[:, :, :0]))
            stream.memory[self] = tuple(
                _last(torch.cat([old, new.unflatten(2, (count, length))[:, :, :, :memory].flatten(2, 3)], 2), kept)
                for old, new in ((old_k, k), (old_v, v))
            )
            k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
        q, mask = _ends(q, shape), None if mask is None else _ends(mask, shape)
        rate = self.dropout if self.training else 0.0
        if mask is None and not rate:
            y = attention(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        return self.out(y.transpose(1, 2).flatten(2))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


def _ends(x: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """[..., N L, D] -> [..., N E, D]: the last E of the L tokens of each block."""
    count, length, _, wanted = shape
    return x if wanted == length else x.unflatten(-2, (count, length))[..., length - wanted :, :].flatten(-3, -2)


def _last(x: Tensor, count: int | None) -> Tensor:
    """The last `count` of axis 2, copied so that what is forgotten is freed; all when None."""
    return x if count is None or x.shape[2] <= count else x[:, :, x.shape[2] - count :].clone()
