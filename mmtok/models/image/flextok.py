"""Ordered 1D codes with a rectified-flow decoder: FlexTok (arXiv 2502.13967).

Legend: B batch, C latent channels, S latent side, g = S / patch, P = g * g patches, N registers, W width, D channels of
the quantizer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.models.image.flow import Sampler
from mmtok.nn.conv2d import ConvDecoder2d, ConvEncoder2d
from mmtok.nn.flow_transformer import FlowTransformer, TimeEmbedding, norm, sine_positions
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Reconstruction, Tokens


class FlexTok(Tokenizer):
    """An image as N ordered codes, any prefix of which decodes to a plausible image: x -> codes [B, 1, N].

    The encoder reads the latents of a frozen VAE; the decoder is a flow from noise to latents, conditioned on the
    codes. `forward` gives `losses["flow"]`, the squared error of the velocity at a random time, and no image: codes
    that `tail` drops (per sample) are replaced by a learned token, and with probability `unconditional` all are, by
    another one, for guidance.
    `decode(tokens, seed=...)` integrates the flow; its noise depends on the seed alone.

    vae      x [B, 3, H, W] in [-1, 1] <-> latents; None: only encoder, quantizer and decoder can be used, on latents
    sampler  steps and guidance of `decode`
    """

    encoder: FlexEncoder
    decoder: FlexDecoder

    def __init__(
        self, encoder: FlexEncoder, quantizer: Quantizer, decoder: FlexDecoder, tail: TailDrop,
        vae: LatentVAE | None = None, sampler: Sampler | None = None, unconditional: float = 0.1,
    ) -> None:
        wanted = {"encoder": encoder.dim, "decoder": decoder.dim}
        for name, dim in wanted.items():
            if dim != quantizer.dim:
                raise ValueError(f"tokenizer: {name}.dim is {dim}, quantizer.dim {quantizer.dim}: make them equal")
        side = encoder.grid * encoder.patch * (8 if vae is None else vae.stride)
        super().__init__(encoder, quantizer, decoder, (side, side), (side, side), tail)
        self.vae = vae
        self.sampler = sampler if sampler is not None else Sampler()
        self.unconditional = unconditional

    def latents(self, x: Tensor) -> Tensor:
        """z [B, D, N] before the quantizer; ValueError for images larger than the model's."""
        if max(x.shape[2:]) > self.stride[0]:
            raise ValueError(f"encode: this model takes images up to {self.stride[0]} pixels, got {list(x.shape[2:])}")
        return self.encoder(self._clean(x, sample=False))

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(N,) for any size."""
        return (self.encoder.registers.shape[0],)

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """The flow-matching loss of a batch (rectified flow, arXiv 2209.03003; logit-normal times)."""
        with torch.no_grad():
            clean = self._clean(batch.x, sample=self.training)
        z = self.encoder(clean)
        keep, _ = self.drawn_keep(z)
        quantized = self.quantizer(z, keep)
        tokens = self.tokens(quantized, keep, self.coding, batch)
        noise = torch.randn_like(clean)
        t = torch.sigmoid(torch.randn(len(z), device=z.device))
        null = torch.rand(len(z), device=z.device) < (self.unconditional if self.training else 0.0)
        at = t.view(-1, 1, 1, 1)
        kept = keep[0].expand(len(z), 1, z.shape[2])[:, 0]
        velocity = self.decoder(at * noise + (1 - at) * clean, t, quantized.z, kept, null)
        flow = F.mse_loss(velocity.float(), (noise - clean).float())
        return Reconstruction(None, tokens, quantized.losses | {"flow": flow}, {"velocity": velocity}, quantized.stats)

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, seed: int = 0) -> Tensor:
        """As `Tokenizer.decode`; the noise is that of `seed`, the same for every item."""
        z = self.embed(tokens)
        side = self.encoder.grid * self.encoder.patch
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, self.encoder.channels, side, side, generator=generator).to(z)
        clean = self.sample(z, tokens, noise.expand(len(z), -1, -1, -1))
        return self._from_model(self._vae().decode(clean), tokens).float().clamp(-1, 1)

    def sample(self, z: Tensor, tokens: Tokens, noise: Tensor) -> Tensor:
        """Latents [B, C, S, S] from codes [B, D, N] and noise [B, C, S, S]."""
        keep = tokens.keep[0].expand(len(z), 1, z.shape[2])[:, 0]

        def velocity(x: Tensor, t: Tensor, null: bool) -> Tensor:
            return self.decoder(x, t, z, keep, torch.full((len(z),), null, device=z.device))

        return self.sampler(velocity, noise)

    def _clean(self, x: Tensor, sample: bool) -> Tensor:
        return self._vae().encode(self._to_model(x), sample)

    def _vae(self) -> LatentVAE:
        if self.vae is None:
            raise ValueError("tokenizer.vae is missing: FlexTok codes the latents of an image VAE")
        return self.vae


class FlexEncoder(nn.Module):
    """Latents [B, C, S, S] -> [B, D, N]: patches see patches; register i sees patches and registers up to i."""

    def __init__(
        self, dim: int, channels: int = 16, grid: int = 16, patch: int = 2, num_registers: int = 256, width: int = 1152,
        layers: int = 18, head_dim: int = 64, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.channels, self.grid, self.patch = dim, channels, grid, patch
        self.patch_embed = nn.Linear(channels * patch * patch, width)
        self.register_buffer("positions", sine_positions(width, grid))
        self.registers = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_registers, width), std=0.02))
        self.transformer = FlowTransformer(
            width, layers, head_dim, gradient_checkpointing=gradient_checkpointing
        )
        self.project = nn.Linear(width, dim)

    positions: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.project(norm(self.read(x))).transpose(1, 2)

    def read(self, x: Tensor) -> Tensor:
        """[B, C, S, S] -> outputs of the registers [B, N, W]."""
        patches = self.patch_embed(to_patches(x, self.patch)) + self.positions.flatten(1).T
        y = torch.cat([patches, self.registers.expand(len(x), -1, -1)], 1)
        count, places = self.registers.shape[0], patches.shape[1]
        mask = y.new_ones(y.shape[1], y.shape[1], dtype=torch.bool)
        mask[:places, places:] = False
        mask[places:, places:] = torch.ones(count, count, dtype=torch.bool, device=y.device).tril()
        return self.transformer(y, mask)[:, places:]


class FlexDecoder(nn.Module):
    """Velocity [B, C, S, S] at x [B, C, S, S] and time t [B], given codes z [B, D, N].

    frequencies  of the time embedding; the other arguments as in `FlexEncoder`
    """

    positions: Tensor

    def __init__(
        self, dim: int, channels: int = 16, grid: int = 16, patch: int = 2, num_registers: int = 256, width: int = 1152,
        layers: int = 18, head_dim: int = 64, frequencies: int = 256, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.grid, self.patch = dim, grid, patch
        self.embed = nn.Linear(dim, width)
        self.register_positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_registers, width), std=0.02))
        self.dropped_token = nn.Parameter(torch.randn(width) * 0.02)
        self.null_token = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embed = nn.Linear(channels * patch * patch, width)
        self.register_buffer("positions", sine_positions(width, grid))
        self.time = TimeEmbedding(width, frequencies)
        self.transformer = FlowTransformer(
            width, layers, head_dim, conditioned=True, gradient_checkpointing=gradient_checkpointing
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, channels * patch * patch)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, z: Tensor, keep: Tensor, null: Tensor) -> Tensor:
        """keep bool [B, N]: other codes count as dropped; null bool [B]: nothing of z is read."""
        registers = self.embed(z.transpose(1, 2)) + self.register_positions
        registers = torch.where(keep[..., None], registers, self.dropped_token)
        registers = torch.where(null[:, None, None], self.null_token, registers)
        patches = self.patch_embed(to_patches(x, self.patch)) + self.positions.flatten(1).T
        time, count = self.time(t), patches.shape[1]
        y = self.transformer(torch.cat([patches, registers.to(patches)], 1), None, time, count)[:, :count]
        shift, scale = self.modulation(F.silu(time))[:, None].chunk(2, 2)
        return from_patches(self.out(norm(y) * (1 + scale) + shift), self.patch, self.grid)


class LatentVAE(nn.Module):
    """A frozen image VAE (diffusers' AutoencoderKL layout): x [B, 3, H, W] in [-1, 1] <-> latents [B, C, h, w].

    encoder     its z_channels are 2 C: mean and logarithm of the variance
    scale       latents are multiplied by it after encoding
    quant_conv  1x1 convolutions after the encoder and before the decoder
    """

    def __init__(
        self, encoder: ConvEncoder2d, decoder: ConvDecoder2d, scale: float = 1.0, quant_conv: bool = True
    ) -> None:
        super().__init__()
        if encoder.z_channels != 2 * decoder.z_channels:
            raise ValueError(f"vae: encoder.z_channels must be twice the decoder's {decoder.z_channels}")
        self.encoder, self.decoder, self.scale = encoder, decoder, scale
        self.stride = encoder.stride
        wide, narrow = encoder.z_channels, decoder.z_channels
        self.quant_conv: nn.Module = nn.Conv2d(wide, wide, 1) if quant_conv else nn.Identity()
        self.post_quant_conv: nn.Module = nn.Conv2d(narrow, narrow, 1) if quant_conv else nn.Identity()

    def encode(self, x: Tensor, sample: bool = False) -> Tensor:
        """The mean, or a draw, of the posterior."""
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, 1)
        if sample:
            mean = mean + torch.randn_like(mean) * (log_variance.clamp(-30, 20) / 2).exp()
        return mean * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W], not clamped."""
        return self.decoder(self.post_quant_conv(z / self.scale))


def to_patches(x: Tensor, patch: int) -> Tensor:
    """[B, C, S, S] -> [B, P, patch * patch * C], ordered (row, column, channel) inside a patch."""
    x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def from_patches(y: Tensor, patch: int, grid: int) -> Tensor:
    """The inverse, for g x g patches."""
    y = y.unflatten(2, (patch, patch, -1)).unflatten(1, (grid, grid))
    return y.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
