"""Terms that act on images or on videos only, where batches of both come in turn (OmniTokenizer).

Legend: B batch, T frames, H, W pixels.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from mmtok.losses.base import Term, Terms
from mmtok.types import Batch, Reconstruction


class OneKind(Term):
    """Base: the wrapped term sees batches of one kind and rests at the others.

    A batch is one of images when x is [B, 3, H, W], or a video [B, 3, 1, H, W] of one frame.
    """

    def __init__(self, term: Term) -> None:
        super().__init__()
        self.term = term
        self.parts, self.discriminator_parts = term.parts, term.discriminator_parts
        self.rescaled, self.balanceable = term.rescaled, term.balanceable

    def view(self, recon: Reconstruction, batch: Batch) -> tuple[Reconstruction, Batch] | None:
        """What the term sees, or None when the batch is of the other kind."""
        raise NotImplementedError

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor | Terms:
        seen = self.view(recon, batch)
        found = {} if seen is None else self.term(*seen, step)
        self.stats = {} if seen is None else self.term.stats
        return found

    def discriminator(self, recon: Reconstruction, batch: Batch, step: int) -> Terms:
        seen = self.view(recon, batch)
        found = {} if seen is None else self.term.discriminator(*seen, step)
        self.stats = {} if seen is None else self.term.stats
        return found

    def discriminators(self) -> list[nn.Module]:
        return self.term.discriminators()

    def scale(self, value: Tensor, others: Tensor, step: int) -> Tensor:
        return self.term.scale(value, others, step)

    def bind(self, tokenizer: nn.Module) -> None:
        self.term.bind(tokenizer)


class OnImages(OneKind):
    """A term of images: it gets [B, 3, H, W], whichever way the images came."""

    def view(self, recon: Reconstruction, batch: Batch) -> tuple[Reconstruction, Batch] | None:
        if batch.x.dim() == 4:
            return recon, batch
        if batch.x.shape[2] > 1:
            return None
        x = None if recon.x is None else recon.x[:, :, 0]
        return replace(recon, x=x), replace(batch, x=batch.x[:, :, 0], size=batch.size[:, 1:])


class OnVideos(OneKind):
    """A term of videos [B, 3, T, H, W] of at least two frames."""

    def view(self, recon: Reconstruction, batch: Batch) -> tuple[Reconstruction, Batch] | None:
        return (recon, batch) if batch.x.dim() == 5 and batch.x.shape[2] > 1 else None
