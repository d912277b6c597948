"""Evaluation of a codec in one pass over utterances for all rates: quality, bits, codebook usage, and codecs beside it.

Every utterance is read and encoded once, alone and unpadded; the tokens of a lower rate are cut from the full ones.
Works on any number of processes: each sums its own share, and the sums are added once at the end.

Legend: C channels, T samples of an utterance.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mmtok.keep import Prefix
from mmtok.metrics.audio import anchors as codecs
from mmtok.metrics.audio.base import Failure
from mmtok.metrics.audio.rate import AudioRate, FileRate
from mmtok.metrics.audio.suite import DEFAULT, PROTOCOL, AudioPanel, AudioSuite
from mmtok.metrics.base import KeyCount, Metric, all_reduce, key_hash
from mmtok.metrics.evaluation import world_size
from mmtok.metrics.lengths import encode_at, length_choices, same_tokens, shorten
from mmtok.metrics.usage import Usage
from mmtok.report.audio_result import AudioResult, Clip, Sound
from mmtok.report.result import Row
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Tokens


@dataclass(frozen=True)
class AudioPlan:
    """What to measure.

    lengths  residual depths (or numbers of tokens) to evaluate; () takes powers of two and the full one
    metrics  names of `mmtok.metrics.audio.suite.NAMES`
    codecs   anchors, of "opus", "codec2"
    samples  utterances the report plays
    """

    lengths: tuple[int, ...] = ()
    metrics: tuple[str, ...] = DEFAULT
    codecs: tuple[str, ...] = ()
    samples: int = 4


class _Candidate:
    """The states of one rate."""

    def __init__(self, length: int | None, panel: AudioPanel, usage: Usage) -> None:
        self.length, self.panel, self.rate, self.usage = length, panel, AudioRate(), usage


class AudioEvaluation:
    """Feeds on this process's utterances; `finish` gives the result over all processes, on every one of them.

    tokenizer  an audio tokenizer; stereo codecs are measured on the mean of their channels
    weights    file or folder of third-party metric weights; None searches
    """

    def __init__(
        self, tokenizer: Tokenizer, plan: AudioPlan, device: torch.device | str = "cpu",
        weights: str | Path | None = None,
    ) -> None:
        if tokenizer.modality != "audio":
            raise ValueError(f"model: expected an audio tokenizer, this one is for {tokenizer.modality}")
        self.tokenizer, self.plan, self.device = tokenizer.to(device).eval(), plan, device
        self.sample_rate = int(tokenizer.spec.rate or tokenizer.size[0])
        self.started = time.perf_counter()
        self.suite = AudioSuite(plan.metrics, self.sample_rate, device, weights)
        second = (self.sample_rate,)
        choices = length_choices(tokenizer, second) if tokenizer.coding == Prefix(1) else []
        asked = sorted(set(plan.lengths))
        if asked and (not choices or asked[0] < choices[0] or asked[-1] > choices[-1]):
            can = f"{choices[0]} to {choices[-1]} codebooks" if choices else "one fixed rate: leave lengths out"
            raise ValueError(f"lengths: this model has {can}, got {asked}")
        shapes, books = tokenizer.grid_shapes(second), tokenizer.quantizer.codebook_sizes
        lengths: list[int | None] = [*(asked or choices)] or [None]
        self.candidates = [_Candidate(n, self.suite.panel(), Usage(shapes, books, by_position=False)) for n in lengths]
        settings = codecs.settings(plan.codecs) if plan.codecs else []
        self.anchors = [(setting, self.suite.panel(), FileRate()) for setting in settings]
        self.original = self.suite.panel()
        self.keys = KeyCount()
        self.cut, self.checked = True, False
        self.unread: list[Failure] = []
        self.shown: list[tuple[int, int, Clip]] = []  # heap of the smallest name hashes, largest first
        self.number = count()  # heap entries never compare clips

    @torch.no_grad()
    def update(self, key: str, wave: Tensor) -> None:
        """Measures one utterance, float [C, T] in [-1, 1] at the codec's rate."""
        rate = torch.tensor([float(self.sample_rate)], dtype=torch.float64)
        batch = Batch(wave[None].float(), (key,), torch.tensor([[wave.shape[-1]]]), rate).to(self.device)
        original = self.suite.hear(wave.mean(0))
        self.keys.update([key])
        full = self.tokenizer.encode(batch)
        seconds = wave.shape[-1] / self.sample_rate
        seen = []
        for candidate in self.candidates:
            tokens = self._tokens(full, batch, candidate.length)
            decoded = self.tokenizer.decode(tokens)
            if not bool(torch.isfinite(decoded).all()):
                raise ValueError(f"evaluate: {key}: {self._label(candidate.length)} decode to NaN or infinity")
            heard = self.suite.hear(decoded[0].mean(0))
            size = float(candidate.rate.update(tokens)[0])
            candidate.usage.update(tokens)
            values = {"bytes": size, "kbps": size * 8 / seconds / 1000, **candidate.panel.update(key, original, heard)}
            seen.append(Sound(self._label(candidate.length), heard.at(None), values))
        others: dict[str, tuple[Sound, ...]] = {}
        for setting, panel, rates in self.anchors:
            back = codecs.through(original.at(None), self.sample_rate, setting)
            values = panel.update(key, original, self.suite.hear(back.wave))
            rates.update(back.size, back.payload, seconds)
            values = {"bytes": float(back.size), "kbps": back.size * 8 / seconds / 1000, **values}
            others[setting.series] = (*others.get(setting.series, ()), Sound(setting.label, back.wave, values))
        truth = Sound("original", original.at(None), self.original.update(key, original, original))
        self._show(Clip(key, self.sample_rate, truth, tuple(seen), others))

    def skip(self, key: str, reason: str) -> None:
        """Counts and names an utterance that could not be read."""
        self.keys.add("skipped", torch.tensor([1]))
        self.unread.append(Failure("reading", key, reason))

    def _tokens(self, full: Tokens, batch: Batch, length: int | None) -> Tokens:
        if length is None:
            return full
        if not self.checked:
            # a model whose codes depend on the depth is found out here and encoded once per depth instead
            self.checked = True
            self.cut = same_tokens(shorten(full, length), encode_at(self.tokenizer, batch, length))
        return shorten(full, length) if self.cut else encode_at(self.tokenizer, batch, length)

    def _show(self, clip: Clip) -> None:
        """Keeps the clips whose name hashes are smallest: the same ones whatever the order and the processes."""
        heapq.heappush(self.shown, (-key_hash(clip.key), next(self.number), clip))
        if len(self.shown) > self.plan.samples:
            heapq.heappop(self.shown)

    def finish(self, expected: KeyCount | None = None) -> AudioResult:
        """expected: every name of the data, on each process alike; ValueError unless each was seen exactly once."""
        states: list[Metric] = [self.keys, *self.original.states()]
        for c in self.candidates:
            states += [*c.panel.states(), c.rate, c.usage]
        for _, panel, rates in self.anchors:
            states += [*panel.states(), rates]
        all_reduce(states)
        seen, skipped = int(self.keys.states["count"]), int(self.keys.states["skipped"])
        if not seen:
            raise ValueError(f"evaluate: no utterance could be read ({skipped} skipped)")
        if expected is not None and seen + skipped != int(expected.states["count"]):
            raise ValueError(
                f"evaluate: {seen} utterances measured and {skipped} skipped, but the data lists"
                f" {int(expected.states['count'])}"
            )
        rows = []
        for c in self.candidates:
            values = {**c.rate.compute(), **c.panel.compute(), **c.usage.compute()}
            rows.append(Row(self._label(c.length), "mmtok", values, c.length))
        others = [
            Row(setting.label, setting.series, {**rates.compute(), **panel.compute()})
            for setting, panel, rates in self.anchors
        ]
        clips, failures = self._gathered()
        seconds = float(self.candidates[0].rate.states["seconds"])
        return AudioResult(
            size=(0, 0), images=seen, skipped=skipped, lengths=rows, anchors=others,
            usage=self.candidates[-1].usage.codebooks(), samples=[], protocol=self._protocol(), floors={},
            notes=self._notes(), seconds=time.perf_counter() - self.started, rate=self.sample_rate,
            audio_seconds=seconds, original=Row("original", "original", self.original.compute()), clips=clips,
            failures=failures,
        )

    def _panels(self) -> list[tuple[str, AudioPanel]]:
        return [
            ("original", self.original), *((self._label(c.length), c.panel) for c in self.candidates),
            *((setting.label, panel) for setting, panel, _ in self.anchors),
        ]

    def _gathered(self) -> tuple[list[Clip], list[Failure]]:
        """Clips to play, and every failure with its candidate's name, of all processes."""
        mine = (self.shown, self.unread + [
            replace(failure, metric=f"{failure.metric} of {name}")
            for name, panel in self._panels() for failure in panel.failures
        ])
        parts = [mine]
        if world_size() > 1:
            parts = [mine] * world_size()
            dist.all_gather_object(parts, mine)
        shown = sorted((entry for clips, _ in parts for entry in clips), key=lambda e: (-e[0], e[2].key))
        failures = sorted((f for _, part in parts for f in part), key=lambda f: (f.metric, f.utterance))
        return [clip for *_, clip in shown[: self.plan.samples]], failures

    def _notes(self) -> list[str]:
        notes = []
        if self.tokenizer.tables is None:
            notes.append("The model has no code tables: no entropy bits, and files are bit-packed.")
        if not self.cut:
            notes.append("Codes depend on the depth: every depth was encoded on its own.")
        if self.keys.states["skipped"]:
            notes.append(f"{int(self.keys.states['skipped'])} utterances could not be read and were left out.")
        for name, panel in self._panels():
            for key, number in panel.failed().items():
                notes.append(f"{key} has no value for {number} utterances of {name}; its mean is over the others.")
        return notes

    def _label(self, length: int | None) -> str:
        if length is None:
            return "all codes"
        return f"{length} codebook{'' if length == 1 else 's'}"

    def _protocol(self) -> dict[str, str]:
        out = {name: PROTOCOL[name] for name in self.suite.names}
        out["means"] = "per utterance on its true length, equal weights, level of the recording"
        out["resampling"] = "soxr HQ"
        out["rate"] = f"codec at {self.sample_rate} Hz; kbps_file: whole .mmt and codec files, one an utterance"
        if self.anchors:
            out["codecs"] = "Opus: libopus, Ogg, variable bitrate, 20 ms; Codec 2: .c2 files at 8 kHz, delay taken off"
        return out
