"""Metrics of speech and music: one number an utterance, then the mean; nothing is padded or silently dropped."""
