"""Vector quantization with a learned codebook.

Legend: B batch, D channels, S positions, N = B * prod(S) vectors, V codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.kernels import code_sums, nearest_code
from mmtok.quantizers.base import (
    Quantizer,
    check_codes,
    code_stats,
    from_vectors,
    full_precision,
    keep_mask,
    masked_mean,
    to_vectors,
)
from mmtok.quantizers.entropy import assignment_entropies
from mmtok.quantizers.kmeans import kmeans_of_batch
from mmtok.quantizers.processes import all_finite, sum_over_processes
from mmtok.quantizers.reseed import cvq_pull, restarts
from mmtok.types import Quantized


class VQ(Quantizer):
    """Nearest code of one codebook [V, D] (VQ-VAE, arXiv 1711.00937).

    z [B, D, *S] -> one grid int64 [B, 1, *S]. Losses: `commit` pulls the encoder to the code, and, when the codebook
    is trained by gradient, `codebook` pulls the code to the encoder; both are means of squared differences.

    dim            D
    codebook_size  V
    l2_norm        compare and return unit vectors (ViT-VQGAN, arXiv 2110.04627)
    cosine         compare unit vectors, but return codes as they are and take losses on vectors as they are (DAC)
    ema_decay      codebook follows an exponential mean of its vectors (VQ-VAE appendix A); None: by gradient
    ema_smoothing  Laplace smoothing of the counts behind that mean (EnCodec: 1e-5)
    kmeans_steps   Lloyd steps over the first training batch give the first codebook (0: random); equal on all processes
    revival        a code whose share of the vectors, averaged over time, falls under revival / V is dead and
                   restarts at a vector of the batch; 0 never revives
    cvq            instead of revival, pull every code to its nearest vector the more the rarer it is (CVQ-VAE)
    usage_decay    decay of that average
    entropy_temperature  adds the losses of `mmtok.quantizers.entropy` on softmax(-distance / temperature); None: not
    """

    usage: Tensor
    initialized: Tensor
    ema_sums: Tensor
    ema_counts: Tensor

    training_state: tuple[str, ...] = ("ema_sums", "ema_counts", "usage")

    def __init__(
        self, dim: int, codebook_size: int, l2_norm: bool = False, ema_decay: float | None = None,
        revival: float = 0.05, usage_decay: float = 0.99, cosine: bool = False, ema_smoothing: float = 0.0,
        kmeans_steps: int = 0, cvq: bool = False, entropy_temperature: float | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or codebook_size < 1:
            raise ValueError(f"quantizer: dim and codebook_size must be positive, got {dim} and {codebook_size}")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"quantizer.ema_decay must lie in [0, 1), got {ema_decay}")
        if entropy_temperature is not None and entropy_temperature <= 0:
            raise ValueError(f"quantizer.entropy_temperature must be positive, got {entropy_temperature}")
        if l2_norm and cosine:
            raise ValueError("quantizer: l2_norm returns unit codes, cosine raw ones; set one of them")
        if cvq and ema_decay is not None:
            raise ValueError("quantizer.cvq moves the codes itself and needs ema_decay: null")
        self.dim = dim
        self.codebook_sizes = ((codebook_size,),)
        self.l2_norm, self.cosine = l2_norm, cosine
        self.ema_decay, self.ema_smoothing = ema_decay, ema_smoothing
        self.kmeans_steps = kmeans_steps
        self.revival, self.usage_decay, self.cvq = revival, usage_decay, cvq
        self.entropy_temperature = entropy_temperature
        codebook = torch.randn(codebook_size, dim) / dim**0.5
        if ema_decay is None:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("ema_sums", codebook.clone())
            self.register_buffer("ema_counts", torch.ones(codebook_size))
        # 1 / V is a code's fair share; a fresh codebook starts just alive, so unused codes restart within ~20 steps.
        # CVQ starts from nothing, so that its first step takes every code to the data
        self.register_buffer("usage", torch.full((codebook_size,), 0.0 if cvq else 1.2 * revival / codebook_size))
        if kmeans_steps:
            self.register_buffer("initialized", torch.tensor(False))

    def restart_training_state(self) -> None:
        """Every code alive, and the running means at the codes themselves."""
        size = self.codebook_sizes[0][0]
        self.usage.fill_(1.0 / size)
        if self.ema_decay is not None:
            self.ema_sums.copy_(self.codebook)
            self.ema_counts.fill_(1.0)

    @full_precision
    def forward(self, z: Tensor, keep: tuple[Tensor, ...] | None = None) -> Quantized:
        mask, rows = keep_mask(keep, z)
        vectors = self.unit(to_vectors(z))
        if self.training and self.kmeans_steps and not bool(self.initialized):
            self._start(vectors.detach(), rows)
        codes = self.assign(vectors.detach())
        table = self.table()
        # looked up before the codebook learns from this batch: value and losses belong to the codes that were chosen
        quantized = F.embedding(codes, table)
        step = quantized.detach() - vectors
        losses = {"commit": masked_mean(step.square(), rows)}
        if self.ema_decay is None:
            losses["codebook"] = masked_mean((quantized - vectors.detach()).square(), rows)
        if self.entropy_temperature is not None:
            # a copy: the backward pass makes the logits again after the codebook has learned
            logits = self._logits(table.clone(), self.entropy_temperature)
            losses |= assignment_entropies(logits, vectors, len(table), rows)
        if self.training:
            self._learn(vectors.detach(), codes, rows)
        # in eval the value is the code itself, so that it equals decode() to the last bit
        out = from_vectors(vectors + step.detach() if self.training else quantized, z)
        grid = codes.view(z.shape[0], 1, *z.shape[2:])
        if mask is not None:
            out, grid = out.masked_fill(~mask, 0), grid * mask
        return Quantized(out, (grid,), losses, code_stats(codes, self.codebook_sizes[0][0], rows))

    @full_precision
    def decode(self, grids: tuple[Tensor, ...], keep: tuple[Tensor, ...] | None = None) -> Tensor:
        check_codes(grids, self.codebook_sizes)
        out = F.embedding(grids[0][:, 0], self.table()).movedim(-1, 1)
        return out if keep is None else out.masked_fill(~keep[0], 0)

    # ---- parts a subclass may replace -----------------------------------------------------------------------------

    def unit(self, vectors: Tensor) -> Tensor:
        """What is compared, returned and learned from, for latents [N, D]."""
        return F.normalize(vectors, dim=1) if self.l2_norm else vectors

    def table(self) -> Tensor:
        """Codes float32 [V, D] as they are returned."""
        return self.unit(self.codebook.float())

    def assign(self, vectors: Tensor) -> Tensor:
        """Codes int64 [N] of detached vectors [N, D]."""
        return nearest_code(self.lookup(vectors), self.lookup(self.table().detach()))[0]

    def lookup(self, vectors: Tensor) -> Tensor:
        """Vectors or codes as they enter the distance."""
        return F.normalize(vectors, dim=1) if self.cosine else vectors

    # ---- learning ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _start(self, vectors: Tensor, rows: Tensor | None) -> None:
        """First codebook from the kept vectors of all processes; a bad or empty batch leaves it for the next."""
        vectors = vectors if rows is None else vectors[rows]
        if not all_finite(vectors):
            return
        centroids = kmeans_of_batch(vectors, self.codebook.shape[0], self.kmeans_steps)
        if centroids is not None:
            self._put(slice(None), centroids)
            self.initialized.fill_(True)

    @torch.no_grad()
    def _learn(self, vectors: Tensor, codes: Tensor, rows: Tensor | None) -> None:
        """EMA step and re-seeding from the kept vectors of all processes."""
        if rows is not None:
            vectors, codes = vectors[rows], codes[rows]
        size = self.codebook.shape[0]
        bad = (~torch.isfinite(vectors.sum())).float()
        counts, sums, bad = sum_over_processes(*code_sums(vectors, codes, size), bad)
        # one bad vector would poison the running sums for good; depth drop may leave nothing
        if bool(bad) or not bool(counts.any()):
            return
        if self.ema_decay is not None:
            self.ema_sums.lerp_(sums, 1 - self.ema_decay)
            self.ema_counts.lerp_(counts, 1 - self.ema_decay)
            alive = self.ema_counts > 1e-3
            total = self.ema_counts.sum()
            smooth = (self.ema_counts + self.ema_smoothing) / (total + size * self.ema_smoothing) * total
            means = self.ema_sums / smooth.clamp(min=1e-3)[:, None]
            self.codebook.copy_(torch.where(alive[:, None], means, self.codebook))
        if self.cvq or self.revival > 0:
            self.usage.lerp_(counts / counts.sum().clamp(min=1), 1 - self.usage_decay)
        if self.cvq:
            self._put(slice(None), cvq_pull(self.codebook.detach().float(), vectors, self.usage, self.usage_decay))
        elif self.revival > 0:
            dead, new = restarts(self.usage, self.revival, vectors)
            self._put(dead, new)
            self.usage[dead] = 1.0 / size  # a full share: time to gather vectors before it is judged again

    def _put(self, where: Tensor | slice, rows: Tensor) -> None:
        """Sets codes; without the running sums the next EMA step would put the old means back."""
        self.codebook.data[where] = rows.to(self.codebook.dtype)
        if self.ema_decay is not None:
            self.ema_sums[where] = self.codebook.data[where]
            self.ema_counts[where] = 1.0

    def _logits(self, table: Tensor, temperature: float) -> Callable[[Tensor], Tensor]:
        codes = self.lookup(table)
        half_norm = codes.square().sum(1)

        def logits(vectors: Tensor) -> Tensor:
            return (2 * self.lookup(vectors) @ codes.T - half_norm) / temperature

        return logits
