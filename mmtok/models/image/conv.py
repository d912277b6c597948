"""2D convolutional tokenizers: one code per square of pixels.

Legend: B batch, H W image, h w code grid, Z encoder channels, D code dimension.

taming VQGAN (arXiv 2012.09841), LlamaGen (arXiv 2406.06525), MaskGIT-VQGAN (arXiv 2202.04200), IBQ (arXiv 2412.02692),
Open-MAGVIT2 (arXiv 2409.04410), VAR (arXiv 2404.02905) and BAE (arXiv 2410.16257) are this class with other arguments:
see configs/image/.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmtok.nn.conv2d import ConvDecoder2d, ConvEncoder2d
from mmtok.quantizers.base import Quantizer
from mmtok.taildrop import TailDrop
from mmtok.tokenizer import Tokenizer
from mmtok.types import Tokens


class ConvTokenizer(Tokenizer):
    """x [B, 3, H, W] -> codes [B, K, h, w] -> x, with h = H / stride; any image size.

    encoder     x [B, 3, H, W] -> [B, Z, h, w]
    quantizer   works on D channels
    decoder     [B, Z, h, w] -> x [B, 3, H, W]
    size        reference (H, W) for `spec`
    quant_conv  convolutions Z -> D before and D -> Z after the quantizer; without them Z must equal D
    quant_kernel  of these convolutions (VAR: 3)
    tail, unit_range: see `Tokenizer`
    """

    encoder: ConvEncoder2d
    decoder: ConvDecoder2d

    def __init__(
        self, encoder: ConvEncoder2d, quantizer: Quantizer, decoder: ConvDecoder2d, size: tuple[int, int] = (256, 256),
        quant_conv: bool = True, tail: TailDrop | None = None, unit_range: bool = False,
        quant_kernel: int = 1,
    ) -> None:
        if encoder.stride != decoder.stride:
            raise ValueError(
                f"tokenizer: encoder halves to 1/{encoder.stride}, decoder grows by {decoder.stride}: give both"
                " channel_mult the same length"
            )
        super().__init__(encoder, quantizer, decoder, (encoder.stride,) * 2, size, tail, unit_range)
        wanted = (encoder.z_channels, decoder.z_channels)
        if not quant_conv and wanted != (quantizer.dim, quantizer.dim):
            raise ValueError(
                f"tokenizer.quant_conv: z_channels {wanted} differ from the quantizer's {quantizer.dim}: make them"
                " equal or set quant_conv: true"
            )
        self.quant_conv: nn.Module = nn.Identity()
        self.post_quant_conv: nn.Module = nn.Identity()
        if quant_conv:
            self.quant_conv = nn.Conv2d(encoder.z_channels, quantizer.dim, quant_kernel, padding=quant_kernel // 2)
            self.post_quant_conv = nn.Conv2d(quantizer.dim, decoder.z_channels, quant_kernel, padding=quant_kernel // 2)

    def latents(self, x: Tensor) -> Tensor:
        """z [B, D, h, w] before the quantizer, for x [B, 3, H, W] in [-1, 1]."""
        return self.quant_conv(super().latents(x))

    def reconstruct(self, z: Tensor, tokens: Tokens) -> Tensor:
        """[B, D, h, w] -> padded image [B, 3, H, W] in the model's range."""
        return self.decoder(self.post_quant_conv(z))
