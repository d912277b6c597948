"""The speech tokenizer of GLM-4-Voice (arXiv 2412.02612, section 2.1): codes of what is said, 12.5 a second.

Legend: B batch, T samples at 16 kHz, D width, F frames = ceil(T / hop), S text steps a frame, L letters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.models.audio.codec import WaveCodec
from mmtok.nn.whisper import HOP, RATE, WhisperEncoder, WhisperMel
from mmtok.quantizers.base import Quantizer
from mmtok.types import Batch, Reconstruction


class GLMTokenizer(WaveCodec):
    """x [B, 1, T] -> codes [B, 1, F]; a flow model that is no part of this package makes sound of them.

    Half of Whisper, its frames averaged by four and quantized. Frames see their block of 4 s and everything before;
    clips are cut into pieces of 30 s. A batch with `lengths` codes every clip as if it were alone, up to the rounding
    of its last spectral frames.

    letters     L of a head that spells what is said, for training: `heads["text"]` [B, F * steps, L + 1], blank first;
                None for none. 256 stands for bytes
    text_steps  S: letters that a frame can spell
    """

    encoder: GLMEncoder

    def __init__(
        self, encoder: GLMEncoder, quantizer: Quantizer, letters: int | None = None, text_steps: int = 4
    ) -> None:
        if encoder.dim != quantizer.dim:
            raise ValueError(f"tokenizer: encoder.dim {encoder.dim} differs from the quantizer's dim {quantizer.dim}")
        super().__init__(encoder, quantizer, NoSound(encoder.stride), RATE, end="layers")
        self.letters, self.text_steps = letters, text_steps
        self.text = None if letters is None else nn.Linear(encoder.dim, text_steps * (letters + 1))

    def latents_of(self, batch: Batch) -> Tensor:
        """z [B, D, F] before the quantizer; what lies behind the end of a clip is not heard."""
        return self.encoder(self._to_model(batch.x), batch.lengths)

    def forward(self, batch: Batch, progress: float = 0.0) -> Reconstruction:
        """Losses of the quantizer and `heads["text"]`; no sound. Padding is kept out of the codebook."""
        quantized, tokens = self.code(self._rated(batch))
        heads = {}
        if self.text is not None:
            heads["text"] = self.text(quantized.z.transpose(1, 2)).unflatten(-1, (self.text_steps, -1)).flatten(1, 2)
        return Reconstruction(None, tokens, quantized.losses, heads, quantized.stats)


class GLMEncoder(nn.Module):
    """x [B, 1, T], any T -> z [B, D, ceil(T / stride)]: log-mel, Whisper's first layers, mean of `pool` frames.

    Arguments: see `WhisperEncoder`.
    """

    channels = 1

    def __init__(
        self, n_mels: int = 128, dim: int = 1280, layers: int = 16, heads: int = 20, hidden: int = 5120,
        positions: int = 1500, block: int = 200, pool: int = 4,
    ) -> None:
        super().__init__()
        if positions % pool:
            raise ValueError(f"encoder.positions must be a multiple of pool {pool}, got {positions}")
        self.dim, self.pool, self.stride = dim, pool, 2 * HOP * pool
        self.mel = WhisperMel(n_mels)
        self.trunk = WhisperEncoder(n_mels, dim, layers, heads, hidden, positions, block)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        size = len(self.trunk.positions) * 2 * HOP  # samples of a piece
        ends = torch.full((len(x),), x.shape[-1], device=x.device) if lengths is None else lengths.to(x.device)
        pieces = [self._piece(piece, ends - at * size) for at, piece in enumerate(x.split(size, -1))]
        return torch.cat(pieces, -1)

    def _piece(self, x: Tensor, samples: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[-1] % self.stride))
        with torch.autocast(x.device.type, enabled=False):
            mel = self.mel(x.float())
        frames = -(-samples.clamp(0, x.shape[-1]) // (2 * HOP))
        return F.avg_pool1d(self.trunk(mel, frames).transpose(1, 2), self.pool)


class NoSound(nn.Module):
    """In place of a decoder: says that there is none."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, z: Tensor) -> Tensor:
        raise ValueError(
            "decode: these codes say what is said, not how it sounds; the flow model and vocoder that GLM-4-Voice"
            " speaks with are no part of this package. `embed(tokens)` gives the vectors of the codes"
        )
