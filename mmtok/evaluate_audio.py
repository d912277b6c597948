"""What `mmtok.evaluate` does for codecs: utterances in; metrics.json, a table, plots and the report that plays them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from mmtok.data.bad import BadSample
from mmtok.metrics.audio.anchors import TITLES
from mmtok.metrics.audio.evaluation import AudioEvaluation, AudioPlan
from mmtok.metrics.audio.suite import DEFAULT
from mmtok.metrics.base import KeyCount
from mmtok.report.audio_result import AudioResult
from mmtok.tokenizer import Tokenizer


@dataclass(frozen=True)
class Utterance:
    """key, and float32 [C, T] in [-1, 1] at the codec's rate, or the reason why it cannot be read."""

    key: str
    wave: Tensor | None
    reason: str = ""


def plan_audio(
    lengths: Sequence[int], metrics: Sequence[str] | None, codecs: Sequence[str] | None, samples: int
) -> AudioPlan:
    """The plan; None takes the default metrics, and every codec."""
    return AudioPlan(
        tuple(lengths), DEFAULT if metrics is None else tuple(metrics), tuple(TITLES if codecs is None else codecs),
        samples,
    )


def evaluate_audio(
    tokenizer: Tokenizer, data: str | list[str], plan: AudioPlan, device: str, weights: str | Path | None,
    limit: int | None, only: Sequence[str], rank: int, world: int, quiet: bool,
) -> AudioResult:
    """Measures every utterance of some audio shards, of `samples:audio...`, or of a folder of audio files."""
    from rich.progress import track

    run = AudioEvaluation(tokenizer, plan, device, weights)
    if limit is not None and limit < 1:
        raise ValueError(f"limit: must be at least 1, got {limit}")
    channels = int(getattr(tokenizer, "channels", 1))
    keys, utterances = open_data(data, run.sample_rate, channels, limit, rank, world, only)
    expected = KeyCount()
    expected.update(keys)
    mine = len(range(rank, len(keys), world))
    for utterance in track(utterances, "evaluate", total=mine, disable=quiet or rank > 0):
        if utterance.wave is None:
            run.skip(utterance.key, utterance.reason)
        else:
            run.update(utterance.key, utterance.wave)
    return run.finish(expected)


def open_data(
    data: str | list[str], rate: int, channels: int, limit: int | None = None, rank: int = 0, world: int = 1,
    only: Sequence[str] = (),
) -> tuple[list[str], Iterator[Utterance]]:
    """(every name, this process's utterances) of shards or of a folder that holds audio files and no index.

    only: patterns of names; limit: the first so many of them.
    """
    folder = Path(data).expanduser() if isinstance(data, str) else None
    if folder is not None and folder.is_dir() and not (folder / "index.json").exists():
        names = [path.relative_to(folder).as_posix() for path in audio_files(folder)]
        keys = [names[i] for i in chosen(names, only)[:limit]]
        return keys, (_read(folder / key, key, rate, channels) for key in keys[rank::world])
    from mmtok.data.audio_module import AudioData

    module = AudioData(train=data, sample_rate=rate, channels=channels, eval_batch_size=1, num_workers=0)
    items = module.eval_loader("data", data, rank, world).dataset.items
    names = [items.reader.key(sample) for sample in range(len(items.reader.index))]
    samples = chosen(names, only)[:limit]

    def utterances() -> Iterator[Utterance]:
        for sample in samples[rank::world]:
            try:
                yield Utterance(names[sample], torch.from_numpy(items.load(sample, (0,), 0).x))
            except BadSample as error:
                yield Utterance(names[sample], None, str(error))

    return [names[sample] for sample in samples], utterances()


def chosen(names: Sequence[str], only: Sequence[str]) -> list[int]:
    """Numbers of the names that match one of the patterns, of all without patterns; ValueError when none does."""
    found = [i for i, name in enumerate(names) if not only or any(fnmatchcase(name, pattern) for pattern in only)]
    if not found:
        raise ValueError(f"only: no name matches {', '.join(only)}; the first is {names[0] if names else 'missing'}")
    return found


def audio_files(folder: Path) -> list[Path]:
    """The audio files below a folder, sorted by path; ValueError when there are none."""
    from mmtok.data.decode_audio import EXTENSIONS

    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower().lstrip(".") in EXTENSIONS)
    if not files:
        raise ValueError(f"data: {folder} holds neither shards (index.json) nor files in {', '.join(EXTENSIONS)}")
    return files


def _read(path: Path, key: str, rate: int, channels: int) -> Utterance:
    from mmtok.data.audio import mix
    from mmtok.data.decode_audio import EncodedAudio
    from mmtok.data.resample import resample

    try:
        audio = EncodedAudio(path.read_bytes(), path.suffix.lower().lstrip("."))
        wave = resample(mix(audio.read(), channels), audio.rate, rate)
    except (BadSample, OSError) as error:
        return Utterance(key, None, str(error))
    return Utterance(key, torch.from_numpy(wave).clamp(-1, 1))
