"""Fused operators for codebook lookups: sources, dispatch and benchmarks."""
