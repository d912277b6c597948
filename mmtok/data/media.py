"""Which extensions are media, and a first look at one file: `mmtok shards make` and `check` decode everything once."""

from __future__ import annotations

from mmtok.data import decode, decode_audio, decode_video
from mmtok.data.decode import EncodedImage
from mmtok.data.decode_audio import EncodedAudio
from mmtok.data.decode_video import EncodedVideo

IMAGES = decode.EXTENSIONS
AUDIO = decode_audio.EXTENSIONS
VIDEOS = tuple(ext for ext in decode_video.EXTENSIONS if ext not in IMAGES)  # a GIF is both, and listed as an image
MEDIA = (*IMAGES, *AUDIO, *VIDEOS)


def examine(ext: str, data: bytes) -> tuple[int, int]:
    """What the index says of a file: (H, W) of an image or video, (Hz, samples) of audio. Raises BadSample."""
    if ext in IMAGES:
        image = EncodedImage(data)
        image.pixels(reduce=8)
        return image.size
    if ext in AUDIO:
        audio = EncodedAudio(data, ext)
        audio.check()
        return audio.rate, audio.frames
    return EncodedVideo(data).check() if ext in VIDEOS else (0, 0)
