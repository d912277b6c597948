"""Beam search over residual depths: codes whose sum comes closer than the nearest code at every depth in turn.

Legend: N vectors, D dimensions, Q depths, V codes, W beam.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CELLS = 1 << 24  # distances held at once


@torch.no_grad()
def beam_encode(x: Tensor, tables: Tensor, depth: Tensor | None, beam: int) -> Tensor:
    """x [N, D], tables [Q, V, D], depth int64 [N] in [0, Q] or None for all -> codes int64 [N, Q].

    The best of W paths at the depth that a vector asks for; codes from there on are 0. Of twice as many paths as are
    kept the errors are summed again in float64, so that the codes of a vector do not depend on those it is searched
    with. With W = 1 this is the usual greedy search.
    """
    count = len(tables)
    rows = max(1, _CELLS // (beam * tables.shape[1]))
    asked = torch.full((len(x),), count, device=x.device) if depth is None else depth
    parts = [_search(a, tables, b, beam) for a, b in zip(x.double().split(rows), asked.split(rows), strict=True)]
    return torch.cat(parts) if parts else asked.new_zeros(0, count)


def _search(x: Tensor, tables: Tensor, depth: Tensor, beam: int) -> Tensor:
    out = torch.zeros(len(x), len(tables), dtype=torch.int64, device=x.device)
    rest, paths = x[:, None], out[:, None, :0]  # [N, W, D], [N, W, codes so far]
    for index, table in enumerate(tables):
        if not bool((depth > index).any()):
            break
        rough = rest.float()
        scores = rough.square().sum(-1, keepdim=True) - 2 * (rough @ table.float().T) + table.float().square().sum(1)
        near = scores.flatten(1).topk(min(2 * beam, scores[0].numel()), largest=False).indices
        path, code = near // len(table), near % len(table)
        rests = rest.gather(1, path[..., None].expand(-1, -1, x.shape[1])) - table[code].double()
        kept = rests.square().sum(-1).topk(min(beam, near.shape[1]), largest=False).indices
        rest = rests.gather(1, kept[..., None].expand(-1, -1, x.shape[1]))
        path, code = path.gather(1, kept), code.gather(1, kept)
        paths = torch.cat([paths.gather(1, path[..., None].expand(-1, -1, index)), code[..., None]], -1)
        done = depth == index + 1
        out[done, : index + 1] = paths[done, 0]
    return out
