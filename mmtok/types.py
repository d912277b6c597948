"""Every named structure that travels between rooms.

Legend: B batch, C channels, K codebooks of a grid, S positions of a grid, L codes of one item.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmtok.code_tables import CodeTables
from mmtok.keep import Full, KeepCoding, Shapes, coding_bits

PAD = -1  # what `Tokens.flat` puts where nothing was sent


@dataclass(frozen=True)
class Batch:
    """What a loader yields and a training step eats.

    x         float [B, C, *S] in [-1, 1]
    keys      one name per item
    size      int64 [B, n]: size of each item before padding, in pixels, frames or samples, as x orders them
    rate      float64 [B]: frames per second or Hz; None for images
    lengths   int64 [B]: true length along the last axis of padded audio; None where nothing is padded
    text      captions, one per item, or None
    features  precomputed teacher or frontend features by name, each [B, ...]
    """

    x: Tensor
    keys: tuple[str, ...]
    size: Tensor
    rate: Tensor | None = None
    lengths: Tensor | None = None
    text: tuple[str, ...] | None = None
    features: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with x, lengths and features on `device`; sizes and rates stay on the CPU."""

        def move(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device, non_blocking=non_blocking)

        features = {name: value.to(device, non_blocking=non_blocking) for name, value in self.features.items()}
        x = self.x.to(device, non_blocking=non_blocking)
        return replace(self, x=x, lengths=move(self.lengths), features=features)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        return replace(self, x=self.x.pin_memory())

    @staticmethod
    def of(x: Tensor, keys: tuple[str, ...] | None = None) -> Batch:
        """A batch around a bare tensor [B, C, *S]: sizes from x, keys "0", "1", ..."""
        size = torch.tensor([x.shape[2:]] * x.shape[0], dtype=torch.int64).view(x.shape[0], x.dim() - 2)
        return Batch(x, keys or tuple(str(i) for i in range(x.shape[0])), size)


@dataclass(frozen=True)
class Side:
    """Side information that `decode` needs besides codes: small integers, or bytes (captions).

    values  int64 [B, ...] in [0, levels), or one `bytes` per item
    levels  alphabet of the integers; 256 for bytes
    """

    values: Tensor | tuple[bytes, ...]
    levels: int = 256

    def bits(self, batch: int) -> Tensor:
        """float64 [B]: log2(levels) a value; 8 a byte plus a 16-bit count for byte strings."""
        if isinstance(self.values, tuple):
            return torch.tensor([16 + 8 * len(v) for v in self.values], dtype=torch.float64)
        return torch.full((batch,), self.values[0].numel() * math.log2(self.levels), dtype=torch.float64)


@dataclass(frozen=True)
class Tokens:
    """The product: discrete codes and exactly what a receiver needs to use them.

    grids           int64 [B, K_i, *S_i] each, in sending order, coarse first; empty for continuous bottlenecks
    keep            bool, broadcastable to its grid: what is sent. An unsent code is 0 and never read
    codebook_sizes  per grid, one size per codebook
    size            int64 [B, n]: original size of the media (H, W | T, H, W | samples)
    rate            float64 [B], Hz or frames per second; None for images
    side            named side information, counted in `bits`
    coding          how `keep` is written (see `mmtok.keep`)
    tables          integer weights for entropy coding, or None (see `mmtok.bitstream`)
    tokenizer_id    hex digest of the weights that made the codes; "" when unsaved
    """

    grids: tuple[Tensor, ...]
    keep: tuple[Tensor, ...]
    codebook_sizes: tuple[tuple[int, ...], ...]
    size: Tensor
    rate: Tensor | None = None
    side: dict[str, Side] = field(default_factory=dict)
    coding: KeepCoding = field(default_factory=Full)
    tokenizer_id: str = ""
    tables: CodeTables | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not len(self.grids) == len(self.keep) == len(self.codebook_sizes):
            raise ValueError("Tokens: grids, keep and codebook_sizes must have one entry a grid")
        for grid, mask, sizes in zip(self.grids, self.keep, self.codebook_sizes, strict=True):
            if grid.dtype != torch.int64:
                raise ValueError(f"Tokens.grids: codes must be int64, got {grid.dtype}")
            if grid.dim() < 3 or grid.shape[1] != len(sizes):
                raise ValueError(f"Tokens.grids: expected [B, {len(sizes)}, *S], got {list(grid.shape)}")
            if mask.dtype != torch.bool or mask.dim() != grid.dim():
                found = f"{mask.dtype} {list(mask.shape)}"
                raise ValueError(f"Tokens.keep: expected bool of {grid.dim()} axes, got {found}")

    def __len__(self) -> int:
        return self.size.shape[0]

    @property
    def codes(self) -> Tensor:
        """The only grid, int64 [B, K, *S]."""
        if len(self.grids) != 1:
            raise ValueError(f"tokens.codes: this tokenizer sends {len(self.grids)} grids; use tokens.grids")
        return self.grids[0]

    @property
    def shapes(self) -> Shapes:
        """(K_i, *S_i) per grid."""
        return tuple(tuple(grid.shape[1:]) for grid in self.grids)

    @property
    def bits(self) -> Tensor:
        """float64 [B]: sent codes at log2 of their codebook, plus the coding of `keep`, plus `side`."""
        if not self.grids:
            raise ValueError("tokens.bits: a continuous bottleneck has no codes, so no bits, bpp or .mmt file")
        total = torch.full((len(self),), coding_bits(self.coding, self.shapes), dtype=torch.float64)
        for grid, mask, sizes in zip(self.grids, self.keep, self.codebook_sizes, strict=True):
            sent = mask.expand_as(grid).flatten(2).sum(2).to("cpu", torch.float64)
            total += sent @ torch.tensor([math.log2(size) for size in sizes], dtype=torch.float64)
        for side in self.side.values():
            total += side.bits(len(self))
        return total

    @property
    def bpp(self) -> Tensor:
        """float64 [B]: bits per original pixel (per pixel of every frame for video)."""
        return self.bits / self.size.to(torch.float64).prod(1)

    @property
    def kbps(self) -> Tensor:
        """float64 [B]: kilobits per second of audio ([samples] at `rate`) or video ([T, H, W] at `rate`)."""
        if self.rate is None:
            raise ValueError("tokens.kbps: images have no rate; use tokens.bpp")
        return self.bits / (self.size[:, 0].to(torch.float64) / self.rate) / 1000

    @property
    def num_sent(self) -> Tensor:
        """int64 [B]: codes sent per item."""
        sent = [mask.expand_as(grid).flatten(1).sum(1) for grid, mask in zip(self.grids, self.keep, strict=True)]
        return torch.stack(sent).sum(0)

    def validate(self) -> Tokens:
        """Self, or ValueError when a sent code lies outside its codebook."""
        for index, (grid, sizes) in enumerate(zip(self.grids, self.codebook_sizes, strict=True)):
            if not grid.numel():
                continue
            low, high = int(grid.amin()), grid.transpose(0, 1).flatten(1).amax(1).tolist()
            for k, (top, size) in enumerate(zip(high, sizes, strict=True)):
                if low < 0 or top >= size:
                    name = f"tokens.grids[{index}]: codebook {k}"
                    raise ValueError(f"{name} takes codes 0..{size - 1}, got {low}..{top}")
        return self

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens with grids and masks on `device`."""
        return replace(
            self, grids=tuple(g.to(device) for g in self.grids), keep=tuple(m.to(device) for m in self.keep)
        )

    def __getitem__(self, index: int) -> Tokens:
        """Item `index` as tokens of batch 1."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"tokens[{index}]: the batch has {len(self)} items")
        at = slice(index % len(self), index % len(self) + 1)
        side = {name: Side(s.values[at], s.levels) for name, s in self.side.items()}
        return replace(
            self, grids=tuple(g[at] for g in self.grids), keep=tuple(m[at] for m in self.keep),
            size=self.size[at], rate=None if self.rate is None else self.rate[at], side=side,
        )

    def flat(self, offset: bool = True) -> Tensor:
        """int64 [B, L] for language models: grid by grid, position by position, codebooks innermost.

        With `offset`, each codebook gets its own id range (grid order, then codebook order), so the
        vocabulary is `sum of all codebook sizes`. Unsent codes are -1.
        """
        parts, start = [], 0
        for grid, mask, sizes in zip(self.grids, self.keep, self.codebook_sizes, strict=True):
            ids = grid + _starts(sizes, start, grid) if offset else grid
            ids = ids.masked_fill(~mask.expand_as(grid), PAD)
            parts.append(ids.movedim(1, -1).flatten(1))
            start += sum(sizes)
        return torch.cat(parts, 1)

    @staticmethod
    def from_flat(flat: Tensor, like: Tokens, offset: bool = True) -> Tokens:
        """The inverse of `flat` for int64 [B, L]; shapes, sizes and side come from `like` (batch B or 1)."""
        length = sum(math.prod(shape) for shape in like.shapes)
        if flat.dim() != 2 or flat.shape[1] != length:
            raise ValueError(f"Tokens.from_flat: expected [B, {length}], got {list(flat.shape)}")
        grids, masks, start, base = [], [], 0, 0
        for shape, sizes in zip(like.shapes, like.codebook_sizes, strict=True):
            count = math.prod(shape)
            ids = flat[:, start : start + count].view(-1, *shape[1:], shape[0]).movedim(-1, 1)
            mask = ids != PAD
            codes = ids - _starts(sizes, base, ids) if offset else ids
            grids.append(codes.masked_fill(~mask, 0))
            masks.append(mask)
            start, base = start + count, base + sum(sizes)
        times = flat.shape[0] // len(like)
        return replace(
            like, grids=tuple(grids), keep=tuple(masks), size=like.size.repeat(times, 1),
            rate=None if like.rate is None else like.rate.repeat(times),
        ).validate()


def _starts(sizes: tuple[int, ...], base: int, grid: Tensor) -> Tensor:
    """int64 [1, K, 1...]: first id of each codebook."""
    firsts = [base + sum(sizes[:k]) for k in range(len(sizes))]
    return torch.tensor(firsts, device=grid.device).view(1, -1, *[1] * (grid.dim() - 2))


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns.

    z       [B, D, *S] straight-through value, dtype of the input, zero where nothing is kept
    grids   int64 [B, K_i, *S_i] per grid
    losses  float32 scalars by name, unweighted
    stats   detached float32 scalars by name, to log
    """

    z: Tensor
    grids: tuple[Tensor, ...]
    losses: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """What a tokenizer's training forward returns.

    x       float [B, C, *S], or None when the model predicts something else (see heads)
    tokens  codes and masks of this batch
    losses  unweighted quantizer and model losses by name
    heads   other outputs by name (proxy logits, features, velocities)
    stats   detached scalars by name, to log
    """

    x: Tensor | None
    tokens: Tokens
    losses: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """A tokenizer's data sheet.

    modality         "image", "video" or "audio"
    stride           media units per code and axis ((1,) axes of latent-query models: the whole input)
    codebook_sizes   per grid, one size per codebook
    tokens           codes per item at `size` (image, video) or per second (audio)
    bits             nominal bits of those codes
    size             the media size `tokens` refers to, () for audio
    rate             Hz for audio, fps the model was trained at for video, None for images
    """

    modality: str
    stride: tuple[int, ...]
    codebook_sizes: tuple[tuple[int, ...], ...]
    tokens: float
    bits: float
    size: tuple[int, ...] = ()
    rate: float | None = None

    @property
    def bpp(self) -> float:
        """Nominal bits per pixel at `size`."""
        return self.bits / math.prod(self.size)

    @property
    def kbps(self) -> float:
        """Nominal kilobits per second (audio)."""
        return self.bits / 1000
