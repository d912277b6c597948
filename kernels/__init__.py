"""Fused operators for codebook lookups: C++ on the CPU, Triton on CUDA, torch elsewhere."""

from mmtok.kernels.dispatch import Status, describe, forced, status
from mmtok.kernels.ops import code_sums, gather_add, nearest_code, residual_encode

__all__ = [
    "Status", "code_sums", "describe", "forced", "gather_add", "nearest_code", "residual_encode", "status",
]
