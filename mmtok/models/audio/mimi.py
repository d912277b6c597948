"""Mimi (arXiv 2410.00037): SEANet at 25 Hz, a streaming transformer, a last step to 12.5 Hz, and the way back.

Legend: B batch, T samples, D latent channels, F frames.

The tokenizer is `WaveCodec` with these parts and a `SplitResidual` quantizer: semantic codebook first.
"""

from __future__ import annotations

from torch import Tensor

from mmtok.nn.conv1d import SameConv1d, SameConvTranspose1d
from mmtok.nn.seanet import SEANetDecoder, SEANetEncoder
from mmtok.nn.stream import Causal, Stream, run
from mmtok.nn.streaming_transformer import StreamingTransformer


class MimiEncoder(Causal):
    """x [B, 1, T] -> z [B, D, F], F = ceil(T / stride): SEANet, transformer, causal convolution of stride `step`.

    The arguments are those of the SEANet (zeros for padding, no normalization, no LSTM) and of the transformer.
    """

    def __init__(
        self, dim: int = 512, n_filters: int = 64, ratios: list[int] | None = None, n_residual: int = 1,
        kernel: int = 7, last_kernel: int = 3, residual_kernel: int = 3, compress: int = 2, layers: int = 8,
        heads: int = 8, hidden: int = 2048, window: int = 250, step: int = 2,
    ) -> None:
        super().__init__()
        self.seanet = SEANetEncoder(
            dim=dim, n_filters=n_filters, ratios=[8, 6, 5, 4] if ratios is None else ratios, n_residual=n_residual,
            kernel=kernel, last_kernel=last_kernel, residual_kernel=residual_kernel, compress=compress, lstm=0,
            conv_shortcut=False, pad_mode="constant", norm="none",
        )
        self.transformer = StreamingTransformer(dim, layers, heads, hidden, window)
        self.down = SameConv1d(
            dim, dim, 2 * step, step, bias=False, causal=True, pad_mode="replicate", norm="none"
        )
        self.stride, self.channels, self.causal = self.seanet.stride * step, 1, True

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, 1, T] -> [B, D, F]."""
        return run([self.seanet, self.transformer, self.down], x, stream)


class MimiDecoder(Causal):
    """z [B, D, F] -> x [B, 1, F * stride]: a transposed convolution per channel, transformer, SEANet."""

    def __init__(
        self, dim: int = 512, n_filters: int = 64, ratios: list[int] | None = None, n_residual: int = 1,
        kernel: int = 7, last_kernel: int = 3, residual_kernel: int = 3, compress: int = 2, layers: int = 8,
        heads: int = 8, hidden: int = 2048, window: int = 250, step: int = 2,
    ) -> None:
        super().__init__()
        self.up = SameConvTranspose1d(dim, dim, 2 * step, step, groups=dim, bias=False, causal=True, norm="none")
        self.transformer = StreamingTransformer(dim, layers, heads, hidden, window)
        self.seanet = SEANetDecoder(
            dim=dim, n_filters=n_filters, ratios=[8, 6, 5, 4] if ratios is None else ratios, n_residual=n_residual,
            kernel=kernel, last_kernel=last_kernel, residual_kernel=residual_kernel, compress=compress, lstm=0,
            conv_shortcut=False, pad_mode="constant", norm="none",
        )
        self.stride, self.channels, self.causal = self.seanet.stride * step, 1, True

    def forward(self, z: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, D, F] -> [B, 1, F * stride]."""
        return run([self.up, self.transformer, self.seanet], z, stream)
