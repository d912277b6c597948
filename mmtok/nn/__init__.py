"""Blocks with no opinion about tokenizers."""
