"""Metrics with additive states; see `mmtok.metrics.base` for the contract."""
