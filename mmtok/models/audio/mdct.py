"""A codec over the modified discrete cosine transform that is a transform coder before it has learned anything.

Legend: B batch, T samples, M hop, F = T / M frames, D latent channels, E bands, K = D - E coefficients.

The encoder lays the K lowest coefficients and the log energies of E bands above them straight into the latents, a
network adds what it finds; the decoder reads both out again, fills with noise what no code describes, as speech coders
do, and a network corrects it. Started this way a residual quantizer reaches at once what a network that begins with
random filters needs thousands of steps for. MDCT frames as input and output of a codec: MDCTCodec, arXiv 2411.00464.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmtok.models.audio.spectral import KERNEL, FrameBlock, SpectralEncoder
from mmtok.nn.mdct import MDCT

POWER = 0.7  # of magnitudes: louder coefficients are coded more coarsely
FLOOR = 1e-3
CENTRE, SPREAD, SILENCE = -9.0, 12.0, 1e-6  # of log energies of a band: mean, divisor, what is added before the log


class MDCTEncoder(nn.Module):
    """x [B, 1, T], T a multiple of hop -> z [B, D, F].

    dim, bands      D, E
    width, hidden, layers, split, n_fft  of the network, a `SpectralEncoder`
    hop             M
    """

    channels = 1
    mean: Tensor

    def __init__(
        self, dim: int = 128, bands: int = 16, width: int = 192, hidden: int = 576, layers: int = 4, hop: int = 320,
        split: int = 2, n_fft: int = 640,
    ) -> None:
        super().__init__()
        self.stride = hop
        self.mdct = MDCT(hop)
        self.network = SpectralEncoder(dim, width, hidden, layers, hop, split, n_fft)
        nn.init.zeros_(self.network.out.weight)
        self.register_buffer("mean", band_means(hop, dim, bands), persistent=False)
        self.skip = nn.Linear(hop + bands, dim)
        with torch.no_grad():
            self.skip.weight.copy_(torch.eye(hop + bands)[[*range(dim - bands), *range(hop, hop + bands)]])
            self.skip.bias.zero_()

    @property
    def reach(self) -> int:
        """Code frames to each side of a frame that it depends on."""
        return max(1, self.network.reach)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            c = self.mdct(x[:, 0].float())
            energies = ((c.square() @ self.mean + SILENCE).log() - CENTRE) / SPREAD
            plain = self.skip(torch.cat([compress(c), energies], 2))
        return plain.transpose(1, 2) + self.network(x)


class MDCTDecoder(nn.Module):
    """z [B, D, F] -> x [B, 1, F * hop].

    Coefficients are e(v) + exp(g) n: v and g are the network's plus a linear reading of z, n is noise that z alone
    determines, so that a piece of a long signal sounds as it does in the whole.

    dim, bands, hop        as of the encoder
    width, hidden, layers  of the network
    """

    channels = 1
    noise: Tensor

    def __init__(
        self, dim: int = 128, bands: int = 16, width: int = 256, hidden: int = 768, layers: int = 5, hop: int = 320
    ) -> None:
        super().__init__()
        self.stride = hop
        self.mdct = MDCT(hop)
        self.embed = nn.Linear(dim, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(FrameBlock(width, hidden, 1 / layers) for _ in range(layers))
        self.final = nn.LayerNorm(width)
        self.out = nn.Linear(width, 2 * hop)
        self.skip = nn.Linear(dim, 2 * hop, bias=False)
        noise = torch.Generator().manual_seed(0)
        self.register_buffer("noise", torch.randn(3 * dim, hop, generator=noise), persistent=False)
        member = (band_means(hop, dim, bands) > 0).float()
        with torch.no_grad():
            nn.init.zeros_(self.out.weight)
            coefficients = torch.eye(hop, dim) * (torch.arange(dim) < dim - bands)
            gains = torch.cat([torch.zeros(hop, dim - bands), 0.5 * SPREAD * member], 1)
            self.skip.weight.copy_(torch.cat([coefficients, gains]))
            # noise starts at half the amplitude of what it replaces: too much is heard sooner than too little
            self.out.bias.copy_(torch.cat([torch.zeros(hop), torch.where(member.any(1), 0.5 * CENTRE - 0.7, -7.0)]))

    @property
    def reach(self) -> int:
        """Code frames to each side of a sample that it depends on."""
        return len(self.blocks) * (KERNEL // 2) + 1

    def forward(self, z: Tensor) -> Tensor:
        rows = z.transpose(1, 2)
        y = self.norm(self.embed(rows))
        for block in self.blocks:
            y = block(y)
        with torch.autocast(z.device.type, enabled=False):
            v, g = (self.out(self.final(y.float())) + self.skip(rows.float())).chunk(2, 2)
            c = expand(v) + g.clamp(max=3).exp() * self._noise(rows)
            return self.mdct.inverse(c)[:, None]

    @torch.no_grad()
    def _noise(self, rows: Tensor) -> Tensor:
        """[B, F, M] of unit variance: a sine of many turns of random directions of three frames."""
        padded = nn.functional.pad(rows.float(), (0, 0, 1, 1))
        near = torch.cat([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], 2)
        return math.sqrt(2) * (8 * (near @ self.noise)).sin()


def compress(c: Tensor) -> Tensor:
    """sign(c) |c|^POWER, with a finite slope at zero."""
    return c * (c.square() + FLOOR**2).pow((POWER - 1) / 2)


def expand(v: Tensor) -> Tensor:
    """About the inverse of `compress`."""
    return v * (v.square() + FLOOR ** (2 * POWER)).pow((1 / POWER - 1) / 2)


def band_means(hop: int, dim: int, bands: int) -> Tensor:
    """float32 [M, E]: averages over E bands of the coefficients from K = D - E on, each wider than the one below."""
    first = dim - bands
    if not 0 < first < hop or bands < 1:
        raise ValueError(f"bands: dim - bands coefficients must be fewer than the hop of {hop}, got {dim} - {bands}")
    edges = [round(first * (hop / first) ** (i / bands)) for i in range(bands + 1)]
    table = torch.zeros(hop, bands)
    for band, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        if high == low:
            raise ValueError(f"bands: {bands} bands are too many for {hop - first} coefficients")
        table[low:high, band] = 1 / (high - low)
    return table
