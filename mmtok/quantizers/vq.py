"""Vector quantization with a learned codebook.

Legend: B batch, D channels, S positions, N = B * prod(S) vectors, V codes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.quantizers.base import (
    Quantizer,
    check_codes,
    code_stats,
    from_vectors,
    full_precision,
    masked_mean,
    to_vectors,
)
from mmtok.quantizers.nearest import nearest_code
from mmtok.types import Quantized


class VQ(Quantizer):
    """Nearest code of one codebook [V, D] (VQ-VAE, arXiv 1711.00937).

    z [B, D, *S] -> one grid int64 [B, 1, *S]. Losses: `commit` pulls the encoder to the code, and, when the codebook
    is trained by gradient, `codebook` pulls the code to the encoder; both are means of squared differences.

    dim            D
    codebook_size  V
    l2_norm        compare and return unit vectors (ViT-VQGAN, arXiv 2110.04627)
    ema_decay      codebook follows an exponential mean of its vectors (VQ-VAE appendix A); None: by gradient
    revival        a code whose share of the vectors, averaged over time, falls under revival / V is dead and
                   restarts at a vector of the batch; 0 never revives
    usage_decay    decay of that average
    """

    usage: Tensor

    def __init__(
        self, dim: int, codebook_size: int, l2_norm: bool = False, ema_decay: float | None = None,
        revival: float = 0.05, usage_decay: float = 0.99,
    ) -> None:
        super().__init__()
        if dim < 1 or codebook_size < 1:
            raise ValueError(f"quantizer: dim and codebook_size must be positive, got {dim} and {codebook_size}")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"quantizer.ema_decay must lie in [0, 1), got {ema_decay}")
        self.dim = dim
        self.codebook_sizes = ((codebook_size,),)
        self.l2_norm = l2_norm
        self.ema_decay = ema_decay
        self.revival = revival
        self.usage_decay = usage_decay
        codebook = torch.randn(codebook_size, dim) / dim**0.5
        if ema_decay is None:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("ema_sums", codebook.clone())
            self.register_buffer("ema_counts", torch.ones(codebook_size))
        # 1 / V is a code's fair share; a fresh codebook starts just alive, so unused codes restart within ~20 steps
        self.register_buffer("usage", torch.full((codebook_size,), 1.2 * revival / codebook_size))

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        mask = None if keep is None else keep[0].expand(z.shape[0], 1, *z.shape[2:])
        rows = None if mask is None else mask[:, 0].flatten()
        vectors = to_vectors(z)
        if self.l2_norm:
            vectors = F.normalize(vectors, dim=1)
        codes = nearest_code(vectors.detach(), self._table().detach())
        if self.training:
            self._learn(vectors.detach(), codes, rows)
        quantized = F.embedding(codes, self._table())
        losses = {"commit": masked_mean((vectors - quantized.detach()).square(), rows)}
        if self.ema_decay is None:
            losses["codebook"] = masked_mean((quantized - vectors.detach()).square(), rows)
        # in eval the value is the code itself, so that it equals decode() to the last bit
        value = vectors + (quantized - vectors).detach() if self.training else quantized
        out = from_vectors(value, z)
        grid = codes.view(z.shape[0], 1, *z.shape[2:])
        if mask is not None:
            out = out * mask
            grid = grid * mask
        return Quantized(out, (grid,), losses, code_stats(codes, self.codebook_sizes[0][0], rows))

    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        out = F.embedding(grids[0][:, 0], self._table()).movedim(-1, 1)
        return out if keep is None else out * keep[0]

    def _table(self) -> Tensor:
        return F.normalize(self.codebook.float(), dim=1) if self.l2_norm else self.codebook.float()

    @torch.no_grad()
    def _learn(self, vectors: Tensor, codes: Tensor, rows: Tensor | None) -> None:
        """EMA step and revival from the kept, finite vectors of all processes."""
        if rows is not None:
            vectors, codes = vectors[rows], codes[rows]
        size = self.codebook.shape[0]
        sums = torch.zeros_like(self.codebook).index_add_(0, codes, vectors)
        counts = torch.bincount(codes, minlength=size).to(sums.dtype)
        finite = torch.isfinite(vectors).all().to(sums.dtype)
        # decided now, not in the constructor: the process group often starts after the model is built
        if dist.is_available() and dist.is_initialized():
            packed = torch.cat([sums.flatten(), counts])
            dist.all_reduce(packed)
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
            sums, counts = packed[: sums.numel()].view_as(sums), packed[sums.numel() :]
        if not bool(finite):
            return  # one bad vector would poison the running sums for good
        if self.ema_decay is not None:
            self.ema_sums.lerp_(sums, 1 - self.ema_decay)
            self.ema_counts.lerp_(counts, 1 - self.ema_decay)
            alive = self.ema_counts > 1e-3
            self.codebook.copy_(
                torch.where(alive[:, None], self.ema_sums / self.ema_counts.clamp(min=1e-3)[:, None], self.codebook)
            )
        if self.revival > 0:
            self.usage.lerp_(counts / counts.sum().clamp(min=1), 1 - self.usage_decay)
            self._revive(vectors)

    def _revive(self, vectors: Tensor) -> None:
        """Restarts dead codes at vectors of the batch, the same on every process."""
        size = self.codebook.shape[0]
        dead = (self.usage < self.revival / size).nonzero()[:, 0]
        candidates = self._candidates(vectors)
        if not len(dead) or not len(candidates):
            return
        dead = dead[: len(candidates)]
        new = candidates[: len(dead)]
        self.codebook.data[dead] = new
        self.usage[dead] = 1.0 / size  # a full share: time to gather vectors before it is judged again
        if self.ema_decay is not None:
            # without this the next EMA step would put the old mean back
            self.ema_sums[dead] = new
            self.ema_counts[dead] = 1.0

    def _candidates(self, vectors: Tensor) -> Tensor:
        """[n, D] distinct random vectors of the batch, drawn on rank 0 from what all ranks offer."""
        limit = min(len(vectors), 256)
        picks = vectors[torch.randperm(len(vectors), device=vectors.device)[:limit]]
        if not (dist.is_available() and dist.is_initialized()):
            return picks
        padded = vectors.new_zeros(256, vectors.shape[1])
        padded[: len(picks)] = picks
        count = torch.tensor([len(picks)], device=vectors.device)
        parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
        counts = [torch.empty_like(count) for _ in parts]
        dist.all_gather(parts, padded)
        dist.all_gather(counts, count)
        # ranks in turn, so that revived codes come from every rank's data
        order = [(i, rank) for rank, n in enumerate(counts) for i in range(int(n))]
        return torch.stack([parts[rank][i] for i, rank in sorted(order)]) if order else vectors[:0]
