"""Causal semantic codes: SEED's tokenizer (arXiv 2310.01218, the released second version).

Legend: B batch, M image features, C their width, N queries, W width of the Q-Former, D code dimension, E image
embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.models.image.lavit import MEAN, STD, stretched
from mmtok.models.image.lavit_blocks import CrossAttention
from mmtok.nn.attention import MLP, Attention, init_vit
from mmtok.nn.vit_trunk import ViTBlock, ViTTrunk
from mmtok.quantizers.base import Quantizer
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Reconstruction, Tokens


class SEED(Tokenizer):
    """x [B, 3, H, W], stretched to the trunk's size -> codes [B, 1, N] in causal order -> an image embedding [B, E].

    A frozen image transformer and a frozen Q-Former, whose query i sees the image and queries up to i, give N vectors;
    these are coded. Codes give no picture but what unCLIP is steered with: `embedding(tokens)`, near CLIP ViT-H's
    projected class token. `forward` gives the loss `features` (1 - cos between what the codes say of the Q-Former's
    vectors and those), the quantizer's losses, and `heads["image_embedding"]`.
    """

    encoder: SEEDEncoder
    decoder: SEEDDecoder

    def __init__(self, encoder: SEEDEncoder, quantizer: Quantizer, decoder: SEEDDecoder) -> None:
        if not encoder.dim == decoder.dim == quantizer.dim:
            raise ValueError(
                f"tokenizer: encoder.dim {encoder.dim}, quantizer {quantizer.dim}, decoder.dim {decoder.dim}:"
                " make them equal"
            )
        if encoder.qformer.queries.shape[0] != decoder.positions.shape[0]:
            raise ValueError("tokenizer: the encoder's num_queries and the decoder's differ: make them equal")
        side = encoder.trunk.grid * (encoder.trunk.patch or 1)
        super().__init__(encoder, quantizer, decoder, (1, 1), (side, side))

    def latents(self, x: Tensor) -> Tensor:
        """z [B, D, N] before the quantizer."""
        return self.encoder.compress(self.encoder.read(x))

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Losses, and the image embedding that the codes stand for; no image."""
        with torch.no_grad():
            vectors = self.encoder.read(batch.x)
        z = self.encoder.compress(vectors)
        keep, coding = self.keep_for(z)
        quantized = self.quantizer(z, keep)
        found = self.decoder.vectors(quantized.z)
        losses = quantized.losses | {
            "features": 1 - F.cosine_similarity(found.float(), vectors.float(), dim=-1).mean()
        }
        heads = {"image_embedding": self.decoder(quantized.z)}
        tokens = self.tokens(quantized, keep, coding, batch)
        return Reconstruction(None, tokens, losses, heads, quantized.stats)

    def embedding(self, tokens: Tokens) -> Tensor:
        """The image embedding [B, E] of the codes."""
        return self.decoder(self.embed(tokens))

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        raise ValueError(
            "decode: SEED's codes steer a diffusion model (unCLIP) that is no part of this package: give it"
            " `embedding(tokens)`"
        )

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(N,) for any size."""
        return (len(self.encoder.qformer.queries),)


class SEEDEncoder(nn.Module):
    """Trunk, norm, Q-Former, and a projection to the codes' space (Linear, Tanh, Linear).

    trunk    EVA-CLIP-g of BLIP-2: 39 blocks, no last norm
    dim      D
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: ViTTrunk, qformer: CausalQFormer, dim: int = 32) -> None:
        super().__init__()
        self.trunk, self.qformer, self.dim = trunk, qformer, dim
        self.norm = nn.LayerNorm(trunk.width)
        width = qformer.queries.shape[1]
        self.hidden, self.project = nn.Linear(width, width), nn.Linear(width, dim)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def read(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] in [-1, 1] -> the Q-Former's vectors [B, N, W]."""
        return self.qformer(self.norm(self.trunk(stretched(x, self.trunk, self.mean, self.std))))

    def compress(self, vectors: Tensor) -> Tensor:
        """[B, N, W] -> [B, D, N]."""
        return self.project(torch.tanh(self.hidden(vectors))).transpose(1, 2)


class CausalQFormer(nn.Module):
    """Queries that see each other causally and, in every `every`-th layer, the image (BLIP-2, arXiv 2301.12597).

    BERT's layout: norms after the sums, eps 1e-12.

    context  C
    """

    def __init__(
        self, context: int, num_queries: int = 32, width: int = 768, layers: int = 12, heads: int = 12,
        hidden: int = 3072, every: int = 2,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, width) * 0.02)
        self.norm = nn.LayerNorm(width, 1e-12)
        self.layers = nn.ModuleList(
            QFormerLayer(width, heads, hidden, context if i % every == 0 else None) for i in range(layers)
        )
        self.apply(init_vit)

    def forward(self, image: Tensor) -> Tensor:
        """Image features [B, M, C] -> [B, N, W]."""
        y = self.norm(self.queries).expand(len(image), -1, -1)
        causal = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool, device=y.device).tril()
        for layer in self.layers:
            y = layer(y, image, causal)
        return y


class QFormerLayer(nn.Module):
    """Self-attention, cross-attention to the image where there is a `context`, MLP; norms after the sums."""

    def __init__(self, width: int, heads: int, hidden: int, context: int | None) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, heads), MLP(width, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-12), nn.LayerNorm(width, 1e-12)
        self.cross = self.norm_cross = None
        if context is not None:
            self.cross, self.norm_cross = CrossAttention(width, heads, context), nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor, image: Tensor, causal: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, causal))
        if self.cross is not None and self.norm_cross is not None:
            x = self.norm_cross(x + self.cross(x, image))
        return self.norm2(x + self.mlp(x))


class SEEDDecoder(nn.Module):
    """z [B, D, N] -> the Q-Former's vectors (`vectors`) and, through a small transformer, the image embedding.

    dim, width   D and W; layers, heads: of the transformer
    down         widths by which every vector shrinks before all are joined; no biases
    embedding    E
    """

    def __init__(
        self, dim: int = 32, num_queries: int = 32, width: int = 768, layers: int = 4, heads: int = 12,
        down: tuple[int, ...] = (256, 128, 32), embedding: int = 1024,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.hidden, self.project = nn.Linear(dim, dim), nn.Linear(dim, width)
        self.positions = nn.Parameter(torch.zeros(num_queries, width))
        self.blocks = nn.ModuleList(ViTBlock(width, heads, 4 * width, 1e-6, None, 0.0) for _ in range(layers))
        widths = [width, *down]
        self.down = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in zip(widths, down, strict=False))
        self.out = nn.Linear(num_queries * down[-1], embedding)
        self.apply(init_vit)

    def vectors(self, z: Tensor) -> Tensor:
        """z [B, D, N] -> [B, N, W]."""
        return self.project(torch.tanh(self.hidden(z.transpose(1, 2))))

    def forward(self, z: Tensor) -> Tensor:
        """z [B, D, N] -> [B, E]."""
        y = self.vectors(z) + self.positions
        for block in self.blocks:
            y = block(y)
        for i, layer in enumerate(self.down):
            y = layer(F.relu(y) if i else y)
        return self.out(y.flatten(1))
