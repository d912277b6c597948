"""Residual quantization: each depth codes what the depths before it left over.

Legend: B batch, D channels, Q depths, K codebooks (Q times those of one depth), S positions, N = B * prod(S) vectors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mmtok.kernels import residual_encode
from mmtok.quantizers.base import (
    Quantizer,
    check_codes,
    code_stats,
    from_vectors,
    full_precision,
    to_vectors,
)
from mmtok.quantizers.beam import beam_encode
from mmtok.quantizers.vq import VQ
from mmtok.types import Quantized


class Residual(Quantizer):
    """Sum of Q quantizers (SoundStream, arXiv 2107.03312).

    z [B, D, *S] -> one grid int64 [B, K, *S], first depth first. `keep` cuts depth (tail drop with `Prefix(1)`: per
    item, per batch, a set of bandwidths, see `mmtok.taildrop`) or positions; a dropped code adds nothing to the sum,
    to the losses or to any statistics. Losses are means over all codes that are sent (DAC sums them over depths
    instead: times the mean number of kept depths); statistics carry the depth as a suffix.

    quantizers  one per depth, each with a single grid; or a single one with `depth`, whose codebook all depths share
    depth       Q when one quantizer is shared
    through     which straight-through gradient (encodec#25). False: values are detached before they are subtracted and
                one straight-through step carries the sum (Mimi), so the `commit` of every depth reaches the encoder.
                True: values are subtracted with their gradient, as EnCodec and DAC were trained: with plain codebooks
                only the first `commit` reaches the encoder. Quantizers that the reconstruction trains (projections,
                IBQ, Bernoulli bits) need True.
    beam        paths kept by the search for codes in eval mode (plain codebooks of one size only); 1 is greedy. Codes
                of fewer depths are then searched for by themselves: they are no prefix of those of more
    """

    def __init__(
        self, quantizers: list[Quantizer], depth: int | None = None, through: bool = False, beam: int = 1
    ) -> None:
        super().__init__()
        if not quantizers or (depth is not None and (len(quantizers) != 1 or depth < 1)):
            raise ValueError(
                f"quantizer.depth: {len(quantizers)} quantizers with depth {depth}; list one per depth, or one "
                "to share and a depth of at least 1"
            )
        if len({quantizer.dim for quantizer in quantizers}) != 1 or any(len(q.codebook_sizes) != 1 for q in quantizers):
            raise ValueError("quantizer.quantizers: depths need one dim and one grid each")
        if not through and any(quantizer.value_gradient for quantizer in quantizers):
            raise ValueError("quantizer.through must be true: the reconstruction trains parameters inside the depths")
        if beam < 1:
            raise ValueError(f"quantizer.beam must be at least 1, got {beam}")
        self.dim, self.beam = quantizers[0].dim, beam
        self.depths = nn.ModuleList(quantizers)
        self.through = through
        self._order = [0] * depth if depth is not None else list(range(len(quantizers)))
        sizes = [quantizers[index].codebook_sizes[0] for index in self._order]
        self.codebook_sizes = (tuple(size for part in sizes for size in part),)
        ends = [sum(len(part) for part in sizes[: i + 1]) for i in range(len(sizes))]
        self._columns = [slice(end - len(part), end) for end, part in zip(ends, sizes, strict=True)]
        self._tables: tuple[Tensor, ...] = ()
        if beam > 1 and not self._plain():
            raise ValueError("quantizer.beam: the search takes plain VQ codebooks of one size")

    @property
    def num_quantizers(self) -> int:
        """Q."""
        return len(self._order)

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        mask = None if keep is None else keep[0].expand(z.shape[0], len(self.codebook_sizes[0]), *z.shape[2:])
        if not self.training:
            mask = _needed(mask)
            if self._plain() and (mask is None or _is_prefix(mask)):
                return self._fused(z, mask)
        rest, total = z, torch.zeros_like(z)
        grids: list[Tensor] = []
        losses = _Mean()
        stats: dict[str, Tensor] = {}
        for depth, columns in enumerate(self._columns):
            part = None if mask is None else (mask[:, columns],)
            out = self.at(depth)(rest, part)
            value = out.z if self.through else out.z.detach()
            if torch.is_grad_enabled():
                total, rest = total + value, rest - value
            else:  # fresh memory would cost more than the sums
                total += value
                rest = rest.sub_(value) if depth else rest - value
            grids.append(out.grids[0])
            losses.add(out.losses, None if part is None else part[0])
            stats |= {f"{name}_{depth}": found for name, found in out.stats.items()}
        if self.training and not self.through:
            total = z + (total - z).detach()
            if mask is not None:
                total = total.masked_fill(~mask.any(1, keepdim=True), 0)
        return Quantized(total, (torch.cat(grids, 1),), losses.result(), stats)

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        total: Tensor | None = None
        for depth, part in enumerate(self._parts(grids, keep)):
            if total is None:
                total = part
            else:  # the order of forward, so that the sum is the same to the last bit
                total = total + part if depth == 1 or torch.is_grad_enabled() else total.add_(part)
        assert total is not None
        return total

    def embeddings(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        """What each depth adds: Q float32 [B, D, *S]. ValueError for codes out of range."""
        return list(self._parts(grids, keep))

    def _parts(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None) -> Iterator[Tensor]:
        """The same, one after the other."""
        check_codes(grids, self.codebook_sizes)
        mask = _needed(None if keep is None else keep[0].expand_as(grids[0]))
        for depth, columns in enumerate(self._columns):
            yield self.at(depth).decode((grids[0][:, columns],), None if mask is None else (mask[:, columns],))

    def partial_sums(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        """float32 [Q, B, D, *S]: the value after 1, 2, ... Q depths."""
        return torch.stack(list(itertools.accumulate(self._parts(grids, keep))))

    def at(self, depth: int) -> Quantizer:
        """The quantizer of a depth."""
        return self.depths[self._order[depth]]  # type: ignore[return-value]

    def freeze(self) -> None:
        """Lays the codebooks end to end once for all calls: for a quantizer that is no longer trained or moved."""
        if self._plain():
            self._tables = (self._stacked(),)

    def _stacked(self) -> Tensor:
        """[Q, V, D]."""
        if self._tables:
            return self._tables[0]
        return torch.stack([self.at(depth).table().detach() for depth in range(len(self._order))])  # type: ignore[operator]

    def _plain(self) -> bool:
        """Whether every depth is a plain codebook of one size, as the fused operator takes them."""
        same = len(set(self.codebook_sizes[0])) == 1
        return same and all(
            type(q) is VQ and not q.l2_norm and not q.cosine and q.entropy_temperature is None for q in self.depths
        )

    def _fused(self, z: Tensor, mask: Tensor | None) -> Quantized:
        """All depths in one pass over the codebooks; losses and statistics follow from the codes."""
        tables = self._stacked()
        depth = None if mask is None else mask.sum(1).flatten()
        if self.beam > 1:
            found = beam_encode(to_vectors(z).detach(), tables, depth, self.beam)
        else:
            found, _ = residual_encode(to_vectors(z).detach(), tables, depth)
        grid = from_vectors(found, z)
        total, rest, losses = torch.zeros_like(z), z, _Mean()
        stats: dict[str, Tensor] = {}
        for index in range(len(tables)):
            part = None if mask is None else (mask[:, index : index + 1],)
            value = self.at(index).decode((grid[:, index : index + 1],), part)
            total, rest = total + value, rest - value.detach()
            squares = rest.square() if part is None else rest.square().masked_fill(~part[0], 0)
            count = squares.numel() if part is None else part[0].sum().clamp(min=1) * z.shape[1]
            commit = squares.sum() / count
            quantizer = self.at(index)
            names = ("commit",) if quantizer.ema_decay is not None else ("commit", "codebook")  # type: ignore[attr-defined]
            losses.add({name: commit for name in names}, None if part is None else part[0])
            rows = None if part is None else part[0].flatten()
            stats |= code_stats(grid[:, index].flatten(), tables.shape[1], rows, suffix=f"_{index}")
        return Quantized(total, (grid,), losses.result(), stats)


class _Mean:
    """Losses of the depths as means over all sent codes."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor | float] = {}

    def add(self, losses: dict[str, Tensor], mask: Tensor | None) -> None:
        weight = 1.0 if mask is None else mask.float().mean()
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value * weight
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def result(self) -> dict[str, Tensor]:
        return {
            name: value / (weight if isinstance(weight := self.weights[name], float) else weight.clamp(min=1e-12))
            for name, value in self.sums.items()
        }


def _needed(mask: Tensor | None) -> Tensor | None:
    """None where nothing is dropped."""
    return None if mask is None or bool(mask.all()) else mask


def _is_prefix(mask: Tensor) -> bool:
    """Whether no position keeps a depth after it dropped one."""
    return not bool((mask[:, 1:] & ~mask[:, :-1]).any())
