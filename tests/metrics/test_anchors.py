"""Codec anchors: whole files, decoded by the same library, better and larger with quality."""

import pytest
import torch

from mmtok.metrics.anchors import AnchorSetting, decode_image, encode_image, settings, through
from mmtok.metrics.pixels import PSNR


def photo():
    y, x = torch.meshgrid(torch.linspace(0, 9, 96), torch.linspace(0, 7, 80), indexing="ij")
    waves = torch.stack([torch.sin(x + y), torch.cos(2 * x - y), torch.sin(x * y / 3)])
    noise = torch.randn(waves.shape, generator=torch.Generator().manual_seed(0)) * 0.03
    return ((waves + noise).clamp(-1, 1) * 127 + 128).to(torch.uint8)


@pytest.mark.parametrize("codec", ["jpeg", "webp", "avif"])
def test_quality_buys_bytes_and_psnr(codec):
    image = photo()
    rows = []
    for quality in (5, 40, 90):
        back, size = through(image[None], AnchorSetting(codec, quality))
        assert int(size) == len(encode_image(image, AnchorSetting(codec, quality)))
        assert back.shape == (1, 3, 96, 80) and back.dtype == torch.uint8
        rows.append((int(size), float(PSNR().update(image[None], back))))
    assert rows == sorted(rows) and rows[-1][1] > 25
    small, _ = through(image[None], AnchorSetting(codec, 40, 4)), None
    assert int(small[1]) < rows[1][0] and small[0].shape == (1, 3, 96, 80)


def test_files_carry_no_metadata_and_sweeps_are_named():
    data = encode_image(photo(), AnchorSetting("jpeg", 20))
    assert data[:2] == b"\xff\xd8" and b"Exif" not in data
    assert decode_image(data, 96, 80).shape == (3, 96, 80)
    labels = [s.label for s in settings(("webp",))]
    assert "WebP q0" in labels and "WebP q30 at 1/2" in labels and len(set(labels)) == len(labels)
    with pytest.raises(ValueError, match="jpeg, webp, avif"):
        settings(("gif",))
