"""`samples:audio...`: real speech and music, split by speaker. What is held out is never trained on.

`samples:audio` comes with the package: 100 prompts of five speakers in five languages and four pieces of music
(`sounds/ATTRIBUTION.md` names authors and licences). The others are found where their Debian packages are installed:

    samples:audio-speech    hours of prompts, words, acted dialogues by dozens of speakers; held out: Italian, Russian
    samples:audio-music     whole pieces of music
    samples:audio-tuxpaint  short descriptions in many languages at 44.1 kHz, held out only
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TRAIN, HELDOUT = "train", "heldout"
OWN = Path(__file__).parent / "sounds"


@dataclass(frozen=True)
class SampleClip:
    """One recording. `package` is what to install for it."""

    name: str
    path: Path
    split: str
    licence: str
    package: str
    speaker: str
    language: str


@dataclass(frozen=True)
class _Folder:
    """Recordings of one package below `root`; `{}` in it and in `speaker` stands for each of `languages`.

    pattern  which files; smallest, in bytes, leaves out beeps and empty files; without lists folders to leave out
    """

    package: str
    root: str
    pattern: str
    licence: str
    split: str
    speaker: str
    languages: str
    smallest: int = 4000
    without: tuple[str, ...] = ()


def _prompts(language: str, folder: str, licence: str, split: str, speaker: str) -> _Folder:
    return _Folder(
        f"asterisk-core-sounds-{language}-g722", f"usr/share/asterisk/sounds/{folder}", "**/*.g722", licence, split,
        speaker, language, without=("silence", "beep.g722", "beeperr.g722", "ascending-2tone.g722",
        "descending-2tone.g722", "tt-monkeys.g722", "confbridge-join.g722", "confbridge-leave.g722"),
    )  # fmt: skip


_CC = "CC-BY-SA-3.0"
_OWN = tuple(
    _Folder("", f"{split}/{speaker}", "*.g722", licence, split, speaker, speaker[:2] if speaker != "music" else "")
    for split, speaker, licence in (
        (TRAIN, "en_allison", _CC), (TRAIN, "es_allison", _CC), (TRAIN, "fr_june", _CC), (TRAIN, "music", _CC),
        (HELDOUT, "it_carlo", "CC-BY-SA"), (HELDOUT, "ru_ivrvoice", "CC-BY-3.0"), (HELDOUT, "music", _CC),
    )
)  # fmt: skip
_SPEECH = (
    _prompts("en", "en_US_f_Allison", _CC, TRAIN, "allison"),
    _prompts("es", "es_MX_f_Allison", _CC, TRAIN, "allison"),
    _prompts("fr", "fr_CA_f_June", _CC, TRAIN, "june"),
    _prompts("it", "it_IT_m_Carlo", "CC-BY-SA", HELDOUT, "carlo"),
    _prompts("ru", "ru_RU_f_IvrvoiceRU", "CC-BY-3.0", HELDOUT, "ivrvoice"),
    _Folder(
        "klettres-data", "usr/share/klettres/{}", "*/*.ogg", "GPL-2.0-or-later", TRAIN, "klettres_{}",
        "ar cs da de en en_GB es fr he hu lt ml nb nds nl pt_BR tn uk",
    ),
    _Folder(
        "ktuberling-data", "usr/share/ktuberling/sounds/{}", "*.*", "GPL-2.0-or-later", TRAIN, "ktuberling_{}",
        "ca da de el en es fi fr ga gl lt nds nl nn pt ro sl sr sr@ijekavian sv uk wa",
    ),
    *(
        _Folder(
            package, "usr/share/games/fillets-ng/sound", f"*/{language}/*.ogg", "GPL-2.0-or-later", TRAIN, "fillets",
            language,
        )
        for language, package in (
            ("cs", "fillets-ng-data-cs"), ("en", "fillets-ng-data"), ("nl", "fillets-ng-data-nl"),
        )
    ),
    _Folder(
        "hedgewars-data", "usr/share/games/hedgewars/Data/Sounds/voices", "*/*.ogg", "GPL-2.0", TRAIN, "hedgewars", "",
        without=("Default_ru", "Russian", "Russian_pl", "Robot"),
    ),
)  # fmt: skip
_MUSIC = tuple(
    _Folder(
        "asterisk-moh-opsound-g722", "usr/share/asterisk/moh", f"{piece}.g722", _CC, split, "music", "",
    )
    for split, piece in ((TRAIN, "macroform-*"), (TRAIN, "manolo_camp-*"), (HELDOUT, "reno_project-*"))
)  # fmt: skip
_TUXPAINT = (
    _Folder(
        "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps", "**/*_desc*.ogg", "GPL-2.0", HELDOUT, "tuxpaint", "",
    ),
)  # fmt: skip
AUDIO_SETS = {
    "samples:audio": _OWN, "samples:audio-speech": _SPEECH, "samples:audio-music": _MUSIC,
    "samples:audio-tuxpaint": _TUXPAINT,
}  # fmt: skip


def find_clips(name: str) -> list[SampleClip]:
    """The recordings of a sample set that are on this machine, by name.

    Debian files are looked for under / or, with MMTOK_SAMPLES_ROOT (a list like PATH), under unpacked packages.
    ValueError when nothing of the set is installed.
    """
    roots = [Path(root) for root in os.environ.get("MMTOK_SAMPLES_ROOT", "/").split(os.pathsep)]
    clips: dict[str, SampleClip] = {}
    for folder in AUDIO_SETS[name]:
        for language in folder.languages.split() or [""]:
            speaker = folder.speaker.format(language)
            for root in roots if folder.package else [OWN]:
                for clip in _below(folder, root / folder.root.format(language), speaker, language):
                    clips.setdefault(clip.name, clip)
    if not clips:
        packages = " ".join(dict.fromkeys(folder.package for folder in AUDIO_SETS[name]))
        raise ValueError(f"{name}: none of its recordings is installed; apt install {packages}")
    return [clips[key] for key in sorted(clips)]


def _below(folder: _Folder, root: Path, speaker: str, language: str) -> list[SampleClip]:
    found = []
    for path in sorted(root.glob(folder.pattern)):
        inside = path.relative_to(root)
        if path.is_file() and path.stat().st_size >= folder.smallest and not set(inside.parts) & set(folder.without):
            prefix = speaker if speaker.startswith(language) else f"{language}_{speaker}"
            key = f"{prefix}/{inside.with_suffix('').as_posix()}"
            found.append(
                SampleClip(key, path, folder.split, folder.licence, folder.package or "mmtok", speaker, language)
            )
    return found
