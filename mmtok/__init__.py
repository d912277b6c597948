"""Discrete tokenizers for images, video and audio: media in, codes out, and back."""

from mmtok.bitstream import load_tokens, save_tokens
from mmtok.hub import load
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Tokens

__all__ = ["Batch", "Tokenizer", "Tokens", "load", "load_tokens", "save_tokens"]
__version__ = "0.1.0"
