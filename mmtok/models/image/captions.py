"""Captions -> token features, for tokenizers that read text.

Legend: B captions, M tokens, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmtok.nn.clip_text import ClipTower, ClipVocabulary, read_tower


class TextEncoder(nn.Module):
    """`forward(captions)` -> float32 [B, M, E]; `context` is M, `dim` is E."""

    context: int
    dim: int

    def forward(self, captions: Sequence[str]) -> Tensor:
        raise NotImplementedError


class ByteText(TextEncoder):
    """A learned embedding of each of the first `context` UTF-8 bytes; trained and saved with the tokenizer."""

    def __init__(self, context: int = 256, dim: int = 256) -> None:
        super().__init__()
        self.context, self.dim = context, dim
        self.embedding = nn.Embedding(257, dim)  # 256 stands for "nothing here"

    def forward(self, captions: Sequence[str]) -> Tensor:
        rows = torch.full((len(captions), self.context), 256)
        for row, caption in zip(rows, captions, strict=True):
            data = list(caption.encode()[: self.context])
            row[: len(data)] = torch.tensor(data, dtype=torch.int64)
        return self.embedding(rows.to(self.embedding.weight.device))


class ClipText(TextEncoder):
    """All token features of CLIP's text tower after its last norm, not projected (TA-TiTok: ViT-L/14-336, E 768).

    Frozen and referred to, not saved: `folder` holds `model.safetensors` and `merges.txt` as openai/clip-vit-* are
    published on the Hugging Face hub, and is read when the first caption comes. ValueError names a missing file.
    """

    _place: Tensor

    def __init__(self, folder: str, context: int = 77, dim: int = 768) -> None:
        super().__init__()
        self.folder, self.context, self.dim = folder, context, dim
        self._held: tuple[ClipVocabulary, ClipTower] | None = None  # a tuple hides the tower from nn.Module
        self.register_buffer("_place", torch.zeros(0), persistent=False)  # follows the tokenizer's device

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> Tensor:
        vocabulary, tower = self._held or self._read()
        ids = torch.tensor([vocabulary.ids(caption, self.context) for caption in captions])
        return tower(ids.to(self._place.device))

    def _read(self) -> tuple[ClipVocabulary, ClipTower]:
        folder = Path(self.folder).expanduser()
        for name in ("model.safetensors", "merges.txt"):
            if not (folder / name).is_file():
                raise ValueError(
                    f"tokenizer.text.folder: {folder / name} does not exist: download openai/clip-vit-large-patch14-336"
                )
        vocabulary = ClipVocabulary((folder / "merges.txt").read_text(encoding="utf-8").splitlines())
        tower = read_tower(folder / "model.safetensors").to(self._place.device)
        if (tower.context, tower.dim) != (self.context, self.dim):
            raise ValueError(
                f"tokenizer.text: {folder} has context {tower.context} and dim {tower.dim},"
                f" not {self.context} and {self.dim}"
            )
        self._held = (vocabulary, tower)
        return self._held

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClipText:
        if self._held is not None:
            self._held[1]._apply(fn)
        return super()._apply(fn, recurse)
