"""Metrics of video: neighbouring frames, rates, video codecs to measure beside."""
