"""Which extensions are media, and a first look at one file: `mmtok shards make` and `check` decode everything once."""

from __future__ import annotations

from mmtok.data import decode, decode_audio
from mmtok.data.decode import EncodedImage
from mmtok.data.decode_audio import EncodedAudio

IMAGES = decode.EXTENSIONS
AUDIO = decode_audio.EXTENSIONS
VIDEOS = ("mp4", "webm")
MEDIA = (*IMAGES, *AUDIO, *VIDEOS)


def examine(ext: str, data: bytes) -> tuple[int, int]:
    """What the index says of a file: (H, W) of an image, (Hz, samples) of audio, (0, 0) of others. Raises BadSample."""
    if ext in IMAGES:
        image = EncodedImage(data)
        image.pixels(reduce=8)
        return image.size
    if ext in AUDIO:
        audio = EncodedAudio(data, ext)
        audio.check()
        return audio.rate, audio.frames
    return 0, 0
