"""Quantizers of vector-quantize-pytorch that we do not write ourselves, behind our contract.

Legend: B batch, D channels, K codebooks, S positions, M kept vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmtok.quantizers.base import (
    Quantizer,
    check_codes,
    code_stats,
    full_precision,
    kept_positions,
    to_vectors,
)
from mmtok.quantizers.processes import all_finite, world
from mmtok.types import Quantized


class LibraryQuantizer(Quantizer):
    """One class of vector-quantize-pytorch (rotation trick, directional reparametrisation, implicit codebooks, ...).

    z [B, D, *S] -> one grid int64 [B, K, *S]. Loss `library`: the sum of what the class returns, with its own weights
    inside. Only kept vectors reach it, so dropped ones never move its codebooks; a batch with NaN is coded in eval mode
    and leaves them alone. `keep` may cut positions, not codebooks.

    name            "VectorQuantize", "ResidualVQ", "ResidualFSQ", "SimVQ" or any class with `get_output_from_indices`
                    or `indices_to_codes` that takes [B, N, D]
    dim             D
    codebook_sizes  size of each of its K codebooks
    options         its constructor arguments, without `dim`

    The library decides in its constructor whether EMA codebooks are synchronised, long before a process group exists;
    training such a codebook on several processes is a ValueError.
    """

    value_gradient = True

    def __init__(self, name: str, dim: int, codebook_sizes: list[int], options: dict[str, Any]) -> None:
        super().__init__()
        try:
            import vector_quantize_pytorch as library
        except ImportError:
            raise ValueError("quantizer: LibraryQuantizer needs `pip install vector-quantize-pytorch`") from None
        if not hasattr(library, name):
            raise ValueError(f"quantizer.name: vector-quantize-pytorch has no {name}")
        self.dim = dim
        self.codebook_sizes = (tuple(codebook_sizes),)
        self.module: nn.Module = getattr(library, name)(dim=dim, **options)
        if self._lookup() is None:
            raise ValueError(f"quantizer.name: {name} cannot turn codes back into vectors")

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        if keep is not None and keep[0].shape[1] > 1 and bool((keep[0] != keep[0][:, :1]).any()):
            raise ValueError("quantizer: LibraryQuantizer cannot drop single codebooks; use Residual for depth drop")
        kept = kept_positions(keep, z)
        rows = torch.ones(z.shape[0] * z[0, 0].numel() if len(z) else 0, dtype=torch.bool, device=z.device)
        rows = rows if kept is None else kept.flatten()
        vectors = to_vectors(z)[rows]
        value, codes, loss = self._run(vectors)
        sizes = self.codebook_sizes[0]
        grid = torch.zeros(len(rows), len(sizes), dtype=torch.int64, device=z.device)
        grid[rows] = codes
        grid = grid.view(z.shape[0], *z.shape[2:], len(sizes)).movedim(-1, 1)
        if self.training:
            full = torch.zeros(len(rows), self.dim, device=z.device).index_put((rows,), value)
            out = full.view(z.shape[0], *z.shape[2:], self.dim).movedim(-1, 1)
        else:
            out = self.decode((grid,), keep)
        stats: dict[str, Tensor] = {}
        for k, size in enumerate(sizes):
            stats |= code_stats(codes[:, k], size, suffix=f"_{k}" if len(sizes) > 1 else "")
        return Quantized(out, (grid,), {"library": loss}, stats)

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        codes = grids[0].movedim(1, -1)
        flat = codes.reshape(1, -1, codes.shape[-1])
        lookup = self._lookup()
        assert lookup is not None
        if not flat.numel():
            return torch.zeros(*codes.shape[:-1], self.dim, device=codes.device).movedim(-1, 1)
        values = lookup(flat[..., 0] if codes.shape[-1] == 1 else flat)
        out = values.reshape(*codes.shape[:-1], self.dim).movedim(-1, 1).float()
        kept = kept_positions(keep, out)
        return out if kept is None else out.masked_fill(~kept, 0)

    def _run(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values [M, D], codes int64 [M, K] and the summed losses of kept vectors [M, D]."""
        if not len(vectors):
            return vectors, torch.zeros(0, len(self.codebook_sizes[0]), dtype=torch.int64), vectors.sum()
        training = self.training
        if training:
            self._check_processes()
            self.module.train(all_finite(vectors.detach()))
        value, codes, *losses = self.module(vectors[None])
        self.module.train(training)
        sizes = torch.tensor(self.codebook_sizes[0], device=vectors.device)
        # NaN may come back as any integer
        codes = codes.reshape(len(vectors), -1).long().clamp(min=0).minimum(sizes - 1)
        return value[0], codes, sum((loss.sum() for loss in losses), vectors.new_zeros(()))

    def _lookup(self) -> Any:
        for method in ("get_output_from_indices", "indices_to_codes"):
            if hasattr(self.module, method):
                return getattr(self.module, method)
        return None

    def _check_processes(self) -> None:
        if world() == 1:
            return
        for module in self.module.modules():
            if getattr(module, "ema_update", False) and not getattr(module, "use_ddp", True):
                raise ValueError(
                    "quantizer: this library codebook was built before the process group and is not synchronised; "
                    "use mmtok.quantizers.vq.VQ, or options: {sync_codebook: true} in a process-group launch"
                )
