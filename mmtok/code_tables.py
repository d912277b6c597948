"""Integer weights under which codes are entropy-coded: plain, or given an earlier code.

Legend: B batch, K codebooks of a grid, S positions, V codes, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.coder import table_bits

_PREFIX, _CONTEXT = "tables.", "tables.context."


@dataclass(frozen=True)
class Context:
    """What an earlier code of the same grid says about the codes of one codebook (conditional coding, order one).

    grid, codebook  whose codes
    source          the codebook that is looked at
    axis            None: at the same position, where source < codebook; else at the position one before along this axis
                    of the grid, 0 the first
    classes         int64 [V_source] in [0, C): codes that say the same
    weights         int32 [C + 1, V], positive; the last row is for codes with nothing before them (border, not sent)
    """

    grid: int
    codebook: int
    source: int
    axis: int | None
    classes: Tensor
    weights: Tensor

    def rows(self, grid: Tensor, keep: Tensor) -> Tensor:
        """Row of `weights` for every code of int64 [B, K, *S] of which bool `keep` of that shape is sent: [B, *S]."""
        # index -1 of `earlier`, no code, finds the last entry
        classes = torch.cat([self.classes, self.classes.new_tensor([len(self.weights) - 1])])
        return classes[earlier(grid, keep, self.source, self.axis)]


@dataclass(frozen=True)
class CodeTables:
    """plain     int32 [K, V] per grid, positive; columns past a codebook's own size are never read
    contexts  at most one a codebook, instead of its plain weights
    """

    plain: tuple[Tensor, ...]
    contexts: tuple[Context, ...] = ()

    def of(self, grid: int, codebook: int) -> Context | None:
        """The context of a codebook, if it has one."""
        return next((c for c in self.contexts if (c.grid, c.codebook) == (grid, codebook)), None)

    def joint(self, grid: int) -> list[int]:
        """Codebooks that are written position by position: those with a context and those that one looks at."""
        found = {k for c in self.contexts if c.grid == grid for k in (c.codebook, c.source)}
        return sorted(found)

    def bits(self, index: int, grid: Tensor, keep: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """float64 [B]: what the sent codes of grid `index` cost; grid int64, keep bool, both [B, K, *S]."""
        total = torch.zeros(len(grid), dtype=torch.float64)
        for k, size in enumerate(sizes):
            context = self.of(index, k)
            if context is None:
                cost = table_bits(self.plain[index][k, :size])[grid[:, k]]
            else:
                cost = table_bits(context.weights)[context.rows(grid, keep), grid[:, k]]
            total += (cost * keep[:, k]).flatten(1).sum(1)
        return total

    def state(self) -> dict[str, Tensor]:
        """The tensors of a file of weights."""
        found = {f"{_PREFIX}{i}": table.to("cpu", torch.int32) for i, table in enumerate(self.plain)}
        for i, c in enumerate(self.contexts):
            place = [c.grid, c.codebook, c.source, -1 if c.axis is None else c.axis]
            found[f"{_CONTEXT}{i}.place"] = torch.tensor(place, dtype=torch.int32)
            found[f"{_CONTEXT}{i}.classes"] = c.classes.to("cpu", torch.int16)
            found[f"{_CONTEXT}{i}.weights"] = c.weights.to("cpu", torch.int16)
        return found

    @staticmethod
    def from_state(state: Mapping[str, Tensor], codebook_sizes: tuple[tuple[int, ...], ...]) -> CodeTables:
        """What `state` wrote; ValueError when it does not fit these codebooks."""
        contexts = []
        for i in range(sum(key.endswith(".place") for key in state)):
            place, classes, weights = (state.get(f"{_CONTEXT}{i}.{name}") for name in ("place", "classes", "weights"))
            if place is None or classes is None or weights is None or place.numel() != 4:
                raise ValueError(f"{_CONTEXT}{i}: place, classes or weights is missing")
            grid, codebook, source, axis = place.tolist()
            contexts.append(Context(
                grid, codebook, source, None if axis < 0 else axis, classes.to(torch.int64), weights.to(torch.int32),
            ))  # fmt: skip
        count = len(state) - 3 * len(contexts)
        if any(f"{_PREFIX}{i}" not in state for i in range(count)):
            raise ValueError(f"tables: unknown {sorted(state)[:5]}")
        tables = CodeTables(tuple(state[f"{_PREFIX}{i}"] for i in range(count)), tuple(contexts))
        tables.check(codebook_sizes)
        return tables

    def check(self, codebook_sizes: tuple[tuple[int, ...], ...]) -> None:
        """ValueError unless every symbol of these codebooks can be coded."""
        shapes = [[len(sizes), max(sizes)] for sizes in codebook_sizes]
        if [list(table.shape) for table in self.plain] != shapes:
            raise ValueError(f"tables: {[list(table.shape) for table in self.plain]} are not tables of {shapes}")
        for table, sizes in zip(self.plain, codebook_sizes, strict=True):
            if any(int(table[k, :size].min()) < 1 for k, size in enumerate(sizes)):
                raise ValueError("tables: a weight is not positive")
        seen = set()
        for c in self.contexts:
            sizes = codebook_sizes[c.grid] if 0 <= c.grid < len(codebook_sizes) else ()
            inside = 0 <= c.codebook < len(sizes) and 0 <= c.source < len(sizes)
            if not inside or (c.axis is None and c.source >= c.codebook) or (c.grid, c.codebook) in seen:
                raise ValueError(f"tables: no context of codebook {c.codebook} can be codebook {c.source}")
            seen.add((c.grid, c.codebook))
            if c.classes.shape != (sizes[c.source],) or c.weights.dim() != 2 or c.weights.shape[1] != sizes[c.codebook]:
                raise ValueError(f"tables: context of codebook {c.codebook}: shapes are not those of its codes")
            low, high = int(c.classes.min()), int(c.classes.max())
            if low < 0 or high >= len(c.weights) - 1 or int(c.weights.min()) < 1:
                raise ValueError(f"tables: context of codebook {c.codebook}: a class or weight is out of range")


def is_table(key: str) -> bool:
    """Whether a key of a file of weights is one of `CodeTables.state`."""
    return key.startswith(_PREFIX)


def earlier(grid: Tensor, keep: Tensor, source: int, axis: int | None) -> Tensor:
    """The codes of codebook `source` that are looked at, int64 [B, *S]; -1 where there is none."""
    codes = grid[:, source].masked_fill(~keep[:, source], -1)
    if axis is None:
        return codes
    border = torch.full_like(codes.narrow(axis + 1, 0, 1), -1)
    return torch.cat([border, codes.narrow(axis + 1, 0, codes.shape[axis + 1] - 1)], axis + 1)
