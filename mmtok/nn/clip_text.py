"""CLIP's text side (arXiv 2103.00020): byte-pair vocabulary and causal transformer.

Legend: B captions, M tokens, E width.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmtok.nn.attention import MLP, TransformerBlock

_END = "</w>"
_CONTRACTION = re.compile(r"'(?:s|t|re|ve|m|ll|d)")


class ClipTower(nn.Module):
    """ids int64 [B, M] -> features float [B, M, E] after the last norm.

    vocabulary  number of ids
    """

    def __init__(self, vocabulary: int, context: int, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.context, self.dim = context, dim
        self.embedding = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.zeros(context, dim))
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads) for _ in range(layers))
        for block in self.blocks:
            block.mlp = QuickMLP(dim, 4 * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        for block in self.blocks:
            x = block(x, causal)
        return self.norm(x)


class QuickMLP(MLP):
    """Linear, x sigmoid(1.702 x), Linear."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.down(y * torch.sigmoid(1.702 * y))


class ClipVocabulary:
    """Lower-cased text -> ids.

    merges  lines "left right" of `merges.txt`, most frequent first; lines that start with # are skipped
    """

    def __init__(self, merges: list[str]) -> None:
        pairs = [tuple(line.split()) for line in merges if line.strip() and not line.startswith("#version")]
        letters = list(_byte_letters().values())
        entries = [*letters, *(letter + _END for letter in letters), *("".join(pair) for pair in pairs)]
        self._id = {entry: i for i, entry in enumerate(entries)}
        self._rank = {pair: i for i, pair in enumerate(pairs)}
        self._letters = _byte_letters()
        self.start, self.end = len(entries), len(entries) + 1
        self.size = len(entries) + 2

    def ids(self, caption: str, context: int) -> list[int]:
        """`context` ids: start, text, end, then zeros; a longer text is cut and still ends with the end."""
        text = " ".join(html.unescape(html.unescape(caption)).split()).lower()
        found = [self._id[piece] for word in _words(text) for piece in self._pieces(word)]
        found = [self.start, *found[: context - 2], self.end]
        return found + [0] * (context - len(found))

    def _pieces(self, word: str) -> list[str]:
        """The word's letters, merged pair by pair, the most frequent pair first."""
        parts = [self._letters[byte] for byte in word.encode()]
        parts[-1] += _END
        while len(parts) > 1:
            pair = min(zip(parts, parts[1:], strict=False), key=lambda p: self._rank.get(p, len(self._rank)))
            if pair not in self._rank:
                break
            merged, i = [], 0
            while i < len(parts):
                joined = (*parts[i : i + 2],) == pair
                merged.append("".join(pair) if joined else parts[i])
                i += 2 if joined else 1
            parts = merged
        return parts


def read_tower(path: Path) -> ClipTower:
    """The text tower of a CLIP published as transformers' `model.safetensors`, frozen, in eval mode."""
    root = "text_model."
    try:
        with safe_open(path, "pt") as file:
            keys = [key for key in file.keys() if key.startswith(root)]  # noqa: SIM118 (no mapping)
            state = {key.removeprefix(root): file.get_tensor(key).float() for key in keys}
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not safetensors: {error}") from None
    if "embeddings.token_embedding.weight" not in state:
        raise ValueError(f"{path}: holds no text tower of CLIP")
    (vocabulary, dim), context = state["embeddings.token_embedding.weight"].shape, len(
        state["embeddings.position_embedding.weight"]
    )
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
    ours = {
        "embedding.weight": state["embeddings.token_embedding.weight"],
        "positions": state["embeddings.position_embedding.weight"],
        "norm.weight": state["final_layer_norm.weight"], "norm.bias": state["final_layer_norm.bias"],
    }
    for i in range(layers):
        for leaf in ("weight", "bias"):
            theirs, block = f"encoder.layers.{i}.{{}}.{leaf}", f"blocks.{i}.{{}}.{leaf}"
            fused = [state[theirs.format(f"self_attn.{part}_proj")] for part in "qkv"]
            ours[block.format("attention.qkv")] = torch.cat(fused)
            for a, b in (
                ("self_attn.out_proj", "attention.out"), ("layer_norm1", "norm1"), ("layer_norm2", "norm2"),
                ("mlp.fc1", "mlp.up"), ("mlp.fc2", "mlp.down"),
            ):
                ours[block.format(b)] = state[theirs.format(a)]
    tower = ClipTower(vocabulary, context, dim, layers, heads=max(1, dim // 64))  # every CLIP has heads of 64
    tower.load_state_dict(ours)
    return tower.requires_grad_(False).eval()


def _words(text: str) -> Iterator[str]:
    """Contractions, runs of letters, single digits, runs of anything else but spaces."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = _CONTRACTION.match(text, at)
        end = match.end() if match else at + 1
        kind = _kind(text[at])
        while not match and kind != "N" and end < len(text) and _kind(text[end]) == kind:
            end += 1
        yield text[at:end]
        at = end


def _kind(letter: str) -> str:
    if letter.isspace():
        return " "
    kind = unicodedata.category(letter)[0]
    return kind if kind in "LN" else "other"


def _byte_letters() -> dict[int, str]:
    """A printable letter for each byte, in the order that numbers the vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}
