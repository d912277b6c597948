"""Every odd image is decoded right or refused with a reason; crops and presets are what they say."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image

from mmtok.data.decode import BadSample, EncodedImage, decode_image
from mmtok.data.transforms import AdmCenterCrop, CenterCrop, RandomResizedCrop, ResizeRandomCrop, bucket_sizes


def save(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def scene(height: int = 60, width: int = 80) -> Image.Image:
    """Red left, green right, blue stripe at the bottom."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0], pixels[:, width // 2 :, 1], pixels[-height // 4 :, :, 2] = 200, 180, 250
    return Image.fromarray(pixels)


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(EncodedImage(data).pixels()).astype(int)


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 100) + b"IDAT" + bytes(104)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data


GOOD = {
    "jpg": lambda: save(scene(), "JPEG", quality=95, subsampling=0),
    "png": lambda: save(scene(), "PNG"),
    "webp": lambda: save(scene(), "WEBP", lossless=True),
    "bmp": lambda: save(scene(), "BMP"),
    "gif": lambda: save(scene().quantize(8), "GIF"),
    "tiff": lambda: save(scene(), "TIFF"),
    "palette": lambda: save(scene().quantize(8), "PNG"),
    "rgba": lambda: save(scene().convert("RGBA"), "PNG"),
    "progressive": lambda: save(scene(), "JPEG", quality=95, progressive=True, subsampling=0),
    "animated": lambda: save(scene(), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (80, 60))]),
}


@pytest.mark.parametrize("kind", GOOD)
def test_formats_and_modes_give_the_same_picture(kind: str) -> None:
    pixels = rgb(GOOD[kind]())
    assert pixels.shape == (60, 80, 3)
    assert np.abs(pixels - np.asarray(scene()).astype(int)).mean() < 3


def test_cmyk_is_converted() -> None:
    pixels = rgb(save(scene().convert("CMYK"), "JPEG", quality=95, subsampling=0))
    assert np.abs(pixels - np.asarray(scene()).astype(int)).mean() < 4


def test_sixteen_bit_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    pixels = rgb(save(Image.fromarray(ramp), "PNG"))
    assert np.abs(pixels[0, :, 0] - np.arange(256)).max() <= 1 and (pixels[..., 0] == pixels[..., 2]).all()


def test_grey_and_grey_alpha_and_palette_alpha() -> None:
    grey = Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10))
    assert (rgb(save(grey, "PNG"))[..., 1] == np.asarray(grey)).all()
    clear = Image.new("LA", (4, 4), (0, 0))
    assert (rgb(save(clear, "PNG")) == 255).all(), "transparent is laid on white"
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((0, 0), 1)
    pixels = rgb(save(palette, "PNG", transparency=0))
    assert pixels[0, 0].tolist() == [40, 50, 60] and pixels[1, 1].tolist() == [255, 255, 255]


def test_one_pixel_and_extreme_aspect() -> None:
    one = EncodedImage(save(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"))
    out = RandomResizedCrop()(one, (8, 8), random.Random(0))
    assert out.size == (8, 8) and out.getpixel((3, 3)) == (9, 8, 7)
    thin = save(Image.new("RGB", (2000, 3)), "JPEG")
    for transform in (RandomResizedCrop(), ResizeRandomCrop(), CenterCrop(), AdmCenterCrop()):
        assert transform(EncodedImage(thin), (8, 8), random.Random(1)).size == (8, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_before_size_and_crop(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270],
    }[orientation]  # the inverse of what the tag asks a viewer to do
    stored = scene(480, 640)
    for step in turned:
        stored = stored.transpose(step)
    image = EncodedImage(save(stored, "JPEG", quality=95, exif=exif))
    assert image.size == (480, 640)
    small = np.asarray(CenterCrop()(image, (48, 64), random.Random(0))).astype(int)
    fast = RandomResizedCrop(scale=(1, 1), ratio=(1, 1), flip=0)(
        EncodedImage(save(stored, "JPEG", quality=95, exif=exif)), (48, 64), random.Random(0)
    )
    want = np.asarray(scene(48, 64)).astype(int)
    assert np.abs(small - want).mean() < 5 and np.abs(np.asarray(fast).astype(int) - want).mean() < 5


BAD = {
    "empty": (lambda: b"", "empty"),
    "not an image": (lambda: b"hello world" * 50, "unsupported"),
    "cut jpeg": (lambda: GOOD["jpg"]()[:600], "truncated"),
    "cut png": (lambda: GOOD["png"]()[:100], "truncated|corrupt"),
    "cut webp": (lambda: GOOD["webp"]()[:60], "truncated|corrupt|unsupported"),
    "png bomb": (lambda: png_header(50_000, 50_000), "too_large"),
    "over the cap": (lambda: save(Image.new("1", (10_000, 9_000)), "PNG"), "too_large"),
    "float tiff": (lambda: save(Image.new("F", (4, 4)), "TIFF"), "unsupported"),
    "pickle": (lambda: b"cos\nsystem\n(S'false'\ntR.", "unsupported"),
}


@pytest.mark.parametrize("kind", BAD)
def test_unusable_images_say_why(kind: str) -> None:
    make, reasons = BAD[kind]
    with pytest.raises(BadSample) as caught:
        EncodedImage(make()).pixels()
    assert caught.value.reason in reasons.split("|")


def test_random_damage_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(0)
    for kind in ("jpg", "png", "webp", "gif", "tiff", "bmp"):
        data = GOOD[kind]()
        for _ in range(60):
            broken = bytearray(data[: rng.integers(1, len(data) + 1)])
            for position in rng.integers(0, len(broken), 4):
                broken[position] = rng.integers(0, 256)
            with contextlib.suppress(BadSample):
                EncodedImage(bytes(broken), max_pixels=100_000).pixels()


def test_range_is_exact() -> None:
    x = decode_image(save(Image.fromarray(np.array([[[0, 128, 255]]], np.uint8)), "PNG"))
    assert x.dtype == torch.float32 and x.flatten().tolist() == pytest.approx([-1, 128 / 127.5 - 1, 1], abs=1e-7)


def test_draft_decoding_is_close_to_full_decoding() -> None:
    from skimage import data

    source = Image.fromarray(data.astronaut()).resize((2048, 2048), Image.Resampling.LANCZOS)
    jpeg = save(source, "JPEG", quality=90)
    crop = RandomResizedCrop(scale=(0.9, 1), flip=0)
    fast = np.asarray(crop(EncodedImage(jpeg), (128, 128), random.Random(3))).astype(float)
    assert EncodedImage(jpeg).pixels(4).size == (512, 512), "the fast path is really taken"
    full = EncodedImage(jpeg)
    full.pixels()  # pixels are loaded: later requests for less get all of them
    slow = np.asarray(crop(full, (128, 128), random.Random(3))).astype(float)
    assert 10 * np.log10(255**2 / ((fast - slow) ** 2).mean()) > 48


@pytest.mark.parametrize("shape", [(300, 451), (451, 300), (97, 97), (40, 300)])
def test_resize_center_equals_torchvision(shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    ours = CenterCrop()(EncodedImage(save(image, "PNG")), (64, 64), random.Random(0))
    theirs = tv.center_crop(tv.resize(image, [64], tv.InterpolationMode.BICUBIC), [64, 64])
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_crops_are_uniform_and_seeded() -> None:
    wide = save(Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(32, 0)), "PNG")
    crop = ResizeRandomCrop(flip=0)
    lefts = [np.asarray(crop(EncodedImage(wide), (32, 32), random.Random(s)))[0, 0, 0] for s in range(300)]
    assert min(lefts) < 15 and max(lefts) > 209 and abs(np.mean(lefts) - 112) < 15
    one, two = (np.asarray(crop(EncodedImage(wide), (32, 32), random.Random(5))) for _ in range(2))
    assert np.array_equal(one, two)
    flips = [np.asarray(ResizeRandomCrop()(EncodedImage(wide), (32, 256), random.Random(s))) for s in range(200)]
    assert 60 < sum(int(f[0, 0, 0]) > int(f[0, -1, 0]) for f in flips) < 140


def test_bucket_sizes() -> None:
    assert bucket_sizes(256, [1.0, 2.0, 0.5], 16) == [(256, 256), (176, 368), (368, 176)]
    with pytest.raises(ValueError, match="data.aspects"):
        bucket_sizes(64, [1.0, 1.01], 16)
