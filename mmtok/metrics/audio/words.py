"""What is said and who says it: word errors and speaker similarity, with networks the user provides.

Legend: T samples at 16 kHz.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from mmtok.metrics.audio.base import Scorer, Unscorable

WHISPER = "faster-whisper-tiny"


class Transcriber(Protocol):
    """name: [a-z0-9_]+, becomes part of the key."""

    name: str

    def __call__(self, wave: Tensor) -> str:
        """The words of [T]."""


class WordErrors(Scorer):
    """Key `dwer_<name>`: word errors in the transcript of the reconstruction against the *transcript of the original*.

    Substitutions, insertions and deletions over the words of the original's transcript, 0 to 1 and above, after
    lowercasing and leaving out punctuation. No written text is needed, and the recogniser's own errors cancel.
    """

    name, rate = "wer", 16000

    def __init__(self, transcriber: Transcriber) -> None:
        self.transcriber = transcriber
        self.keys = (f"dwer_{transcriber.name}",)
        self._heard: tuple[Tensor, list[str]] | None = None

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        if self._heard is None or self._heard[0] is not reference:  # the same original for every rate
            self._heard = reference, words(self.transcriber(reference))
        said = self._heard[1]
        if not said:
            raise Unscorable("no words in the original")
        return {self.keys[0]: edits(said, words(self.transcriber(degraded))) / len(said)}


class Whisper:
    """A Whisper model in CTranslate2 form, from a local folder (model.bin, tokenizer.json, ...), by faster-whisper.

    path: the folder, or one that holds `faster-whisper-tiny`; None takes the folder that MMTOK_WEIGHTS_DIR names.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        folder = Path(path or os.environ.get("MMTOK_WEIGHTS_DIR", ".")).expanduser()
        folder = folder if (folder / "model.bin").is_file() else folder / WHISPER
        if not (folder / "model.bin").is_file():
            raise ValueError(
                f"metrics: wer needs a Whisper model in CTranslate2 form, {folder}/model.bin does not exist: put"
                f" {WHISPER} (huggingface.co/Systran/{WHISPER}) into the folder that MMTOK_WEIGHTS_DIR names"
            )
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise ValueError("metrics: wer needs faster-whisper: pip install faster-whisper") from None
        self.name = re.sub("[^a-z0-9]+", "_", folder.name.removeprefix("faster-").lower())
        self.model = WhisperModel(str(folder), device="cpu", compute_type="int8")

    def __call__(self, wave: Tensor) -> str:
        segments, _ = self.model.transcribe(wave.numpy(), vad_filter=False, temperature=0.0)
        return " ".join(segment.text for segment in segments)


class SpeakerEncoder(Protocol):
    """name: [a-z0-9_]+, becomes the key: similarities by two encoders never compare."""

    name: str

    def __call__(self, wave: Tensor) -> Tensor:
        """A vector of [T]."""


class SpeakerSimilarity(Scorer):
    """Key `speaker_<name>`: cosine between the embeddings of the original and of the reconstruction."""

    name, rate = "speaker", 16000

    def __init__(self, encoder: SpeakerEncoder) -> None:
        self.encoder = encoder
        self.keys = (f"speaker_{encoder.name}",)

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        x, y = (self.encoder(wave).double().flatten() for wave in (reference, degraded))
        size = float(x.norm() * y.norm())
        if not size > 0:
            raise Unscorable("no voice found")
        return {self.keys[0]: float(x @ y) / size}


class Resemblyzer:
    """The GE2E speaker encoder whose weights come in the package `resemblyzer`."""

    name = "resemblyzer"

    def __init__(self) -> None:
        try:
            from resemblyzer import VoiceEncoder
        except ImportError as error:
            raise ValueError(
                f"metrics: speaker needs {error.name}: pip install resemblyzer 'setuptools<81', which holds the weights"
            ) from None
        self.model = VoiceEncoder("cpu", verbose=False)

    def __call__(self, wave: Tensor) -> Tensor:
        import torch

        return torch.from_numpy(np.asarray(self.model.embed_utterance(wave.numpy())))


def words(text: str) -> list[str]:
    """Lower case, without punctuation; apostrophes inside words stay."""
    return re.findall(r"\w+(?:'\w+)*", text.lower().replace("’", "'"))


def edits(wanted: list[str], got: list[str]) -> int:
    """Fewest insertions, deletions and substitutions between two lists of words (Levenshtein)."""
    row = list(range(len(got) + 1))
    for i, want in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, word in enumerate(got, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (want != word))
    return row[-1]
