"""Evaluation in one pass over the data for all lengths: quality, bits, codebook usage, and codecs beside it.

Every image is read and encoded once; the tokens of a shorter length are cut from the full ones through the keep
coding, which is checked against the truncated path on the first batch. Works on any number of processes: each sums
its own share, and the sums are added once at the end.

Legend: B batch, H, W pixels.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import PIL
import torch
import torch.distributed as dist
from torch import Tensor

from mmtok.keep import Prefix
from mmtok.metrics import anchors as codecs
from mmtok.metrics.base import KeyCount, Metric, all_reduce, key_hash
from mmtok.metrics.lengths import encode_at, length_choices, same_tokens, shorten
from mmtok.metrics.pixels import to_uint8
from mmtok.metrics.rate import FileSizes, Rate
from mmtok.metrics.suite import Panel, Suite
from mmtok.metrics.usage import Usage
from mmtok.report.result import EvaluationResult, Picture, Row, Sample
from mmtok.tokenizer import Tokenizer
from mmtok.types import Batch, Tokens


@dataclass(frozen=True)
class Plan:
    """What to measure.

    lengths   tokens (or residual depths) to evaluate; () takes powers of two and the full length
    metrics   names of `mmtok.metrics.suite.NAMES`
    codecs    codec anchors, of "jpeg", "webp", "avif"
    samples   held-out images shown in the report
    rounding  "round" or "truncate" (see `mmtok.metrics.pixels.to_uint8`)
    frechet_of_codecs  Frechet distances of the anchors too (a network pass for each of the settings)
    """

    lengths: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ("psnr", "ssim", "lpips_alex")
    codecs: tuple[str, ...] = ()
    samples: int = 6
    rounding: str = "round"
    frechet_of_codecs: bool = False


class _Candidate:
    """The states of one length."""

    def __init__(self, length: int | None, panel: Panel, usage: Usage) -> None:
        self.length, self.panel, self.rate, self.usage = length, panel, Rate(), usage


class Evaluation:
    """Feeds on this process's batches; `finish` gives the result over all processes, on every one of them.

    tokenizer  on `device`, in eval mode
    size       (H, W) of all images
    weights    file or folder of third-party metric weights; None searches (see `mmtok.weights`)
    """

    def __init__(
        self, tokenizer: Tokenizer, size: tuple[int, ...], plan: Plan, device: torch.device | str = "cpu",
        weights: str | Path | None = None,
    ) -> None:
        self.tokenizer, self.size, self.plan, self.device = tokenizer.to(device).eval(), size, plan, device
        self.started = time.perf_counter()
        self.suite = Suite(plan.metrics, device, weights)
        choices = length_choices(tokenizer, size)
        asked = sorted(set(plan.lengths))
        if asked and (not choices or asked[0] < choices[0] or asked[-1] > choices[-1]):
            can = f"{choices[0]} to {choices[-1]}" if choices else "one fixed length: leave lengths out"
            raise ValueError(f"lengths: this model has {can}, got {asked}")
        shapes, books = tokenizer.grid_shapes(size), tokenizer.quantizer.codebook_sizes
        lengths: list[int | None] = [*(asked or choices)] or [None]
        last = lengths[-1]
        self.candidates = [
            _Candidate(n, self.suite.panel(), Usage(shapes, books, by_position=n == last)) for n in lengths
        ]
        settings = codecs.settings(plan.codecs) if plan.codecs else []
        self.anchors = [(setting, self.suite.panel(plan.frechet_of_codecs), FileSizes()) for setting in settings]
        self.keys = KeyCount()
        self.cut = len(lengths) > 1 or lengths[0] is not None  # whether shorter lengths are cut from the full one
        self.checked = False
        self.shown: list[tuple[int, int, Sample]] = []  # heap of the smallest name hashes, largest first
        self.number = count()  # heap entries never compare samples

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Measures a batch: one encoding, one decoding per length."""
        batch = batch.to(self.device)
        if tuple(batch.x.shape[2:]) != self.size:
            raise ValueError(f"evaluate: an image is {list(batch.x.shape[2:])}, expected {list(self.size)} for all")
        real = to_uint8(batch.x, self.plan.rounding)
        self.keys.update(batch.keys)
        self.suite.see_real(real, batch.keys)
        full = self.tokenizer.encode(batch)
        seen = []
        for candidate in self.candidates:
            tokens = self._tokens(full, batch, candidate.length)
            decoded = self.tokenizer.decode(tokens)
            if not bool(torch.isfinite(decoded).all()):
                raise ValueError(f"evaluate: the model decodes {self._label(candidate.length)} to NaN or infinity")
            fake = to_uint8(decoded, self.plan.rounding)
            scores = candidate.panel.update(real, fake)
            scores = {"bytes": candidate.rate.update(tokens).double(), **scores}
            candidate.usage.update(tokens)
            seen.append((fake.cpu(), scores))
        for setting, panel, size in self.anchors:
            fake, sizes = codecs.through(real, setting)
            panel.update(real, fake)
            size.update(sizes, real)
        self._show(batch.keys, real.cpu(), seen)

    def skip(self, count: int) -> None:
        """Counts images that could not be read."""
        self.keys.add("skipped", torch.tensor([count]))

    def _tokens(self, full: Tokens, batch: Batch, length: int | None) -> Tokens:
        if length is None:
            return full
        if self.cut and not self.checked:
            # a model whose codes depend on the length is found out here and encoded once per length instead
            self.checked = True
            self.cut = same_tokens(shorten(full, length), encode_at(self.tokenizer, batch, length))
        return shorten(full, length) if self.cut else encode_at(self.tokenizer, batch, length)

    def _show(self, keys: tuple[str, ...], real: Tensor, seen: list[tuple[Tensor, dict[str, Tensor]]]) -> None:
        """Keeps the images whose name hashes are smallest: the same ones whatever the batches and processes."""
        for i, key in enumerate(keys):
            entry = -key_hash(key)
            if len(self.shown) == self.plan.samples and (not self.shown or entry <= self.shown[0][0]):
                continue
            pictures = tuple(
                Picture(self._label(c.length), fake[i], {name: float(score[i]) for name, score in scores.items()})
                for c, (fake, scores) in zip(self.candidates, seen, strict=True)
            )
            heapq.heappush(self.shown, (entry, next(self.number), self._sample(i, key, real[i], pictures)))
            if len(self.shown) > self.plan.samples:
                heapq.heappop(self.shown)

    def _sample(self, index: int, key: str, real: Tensor, pictures: tuple[Picture, ...]) -> Sample:
        return Sample(key, real, pictures)

    def finish(self, expected: KeyCount | None = None) -> EvaluationResult:
        """expected: every name of the data, on each process alike; ValueError unless each was seen exactly once."""
        states: list[Metric] = [self.keys, *self.suite.states()]
        for c in self.candidates:
            states += [*c.panel.states(), c.rate, c.usage]
        for _, panel, size in self.anchors:
            states += [*panel.states(), size]
        all_reduce(states)
        if not int(self.keys.states["count"]):
            raise ValueError("evaluate: the data holds no images")
        if expected is not None:
            self._check_complete(expected)
        lengths = []
        for c in self.candidates:
            values = {**c.rate.compute(), **self.suite.compute(c.panel), **c.usage.compute()}
            lengths.append(Row(self._label(c.length), "mmtok", values, c.length))
        anchors = []
        for setting, panel, size in self.anchors:
            values = {**size.compute(), **self.suite.compute(panel)}
            anchors.append(Row(setting.label, setting.series, values, None, setting.scale))
        usage = self.candidates[-1].usage.codebooks()
        return EvaluationResult(
            self.size, int(self.keys.states["count"]), int(self.keys.states["skipped"]), lengths, anchors, usage,
            self._samples(), self._protocol(), self.suite.floors(), self._notes(), time.perf_counter() - self.started,
        )

    def _check_complete(self, expected: KeyCount) -> None:
        seen, skipped, wanted = (
            int(m.states[name]) for m, name in ((self.keys, "count"), (self.keys, "skipped"), (expected, "count"))
        )
        if seen + skipped != wanted:
            raise ValueError(f"evaluate: {seen} images measured and {skipped} skipped, but the index lists {wanted}")
        if not skipped and int(self.keys.states["checksum"]) != int(expected.states["checksum"]):
            raise ValueError("evaluate: some images were measured twice and others not at all")

    def _notes(self) -> list[str]:
        notes = []
        if self.tokenizer.tables is None:
            notes.append("The model has no code tables: no entropy bits, and files are bit-packed.")
        if not self.cut and self.candidates[0].length is not None:
            notes.append("Codes depend on the length: every length was encoded on its own.")
        if self.keys.states["skipped"]:
            notes.append(f"{int(self.keys.states['skipped'])} images could not be read and were left out.")
        return notes

    def _label(self, length: int | None) -> str:
        if length is None:
            return "all tokens"
        unit = "quantizer" if self.tokenizer.coding == Prefix(1) else "token"
        return f"{length} {unit}{'' if length == 1 else 's'}"

    def _samples(self) -> list[Sample]:
        shown = self.shown
        if world_size() > 1:
            parts: list[list[tuple[int, int, Sample]]] = [[] for _ in range(world_size())]
            dist.all_gather_object(parts, shown)
            shown = [entry for part in parts for entry in part]
        chosen = [sample for *_, sample in sorted(shown, key=lambda e: (-e[0], e[2].key))[: self.plan.samples]]
        return [replace(sample, anchors=self._versions_of(sample)) for sample in chosen]

    def _versions_of(self, sample: Sample) -> dict[str, tuple[Picture, ...]]:
        """One image through every codec setting, by codec title."""
        out: dict[str, tuple[Picture, ...]] = {}
        for setting, _, _ in self.anchors:
            real = sample.original[None].to(self.device)
            fake, size = codecs.through(real, setting)
            scores = {name: float(v) for name, v in self.suite.panel(frechet=False).update(real, fake).items()}
            picture = Picture(setting.label, fake[0].cpu(), {"bytes": float(size), **scores})
            out[setting.series] = (*out.get(setting.series, ()), picture)
        return out

    def _protocol(self) -> dict[str, str]:
        protocol = {
            "rounding": f"both sides to uint8 by {self.plan.rounding}",
            "psnr": "mean over images, data range 255, RGB, capped at 100 dB",
            "ssim": "Gaussian 11x11, sigma 1.5, data range 255, without borders",
            "lpips_alex": "LPIPS v0.1, AlexNet, mean over images", "lpips_vgg": "LPIPS v0.1, VGG16, mean over images",
            "fd_vgg16": "Frechet distance of mean relu5_3 (512) of VGG16; not an FID",
            "rfid": "Inception-v3 2015-12-05 by torch-fidelity, against the same cropped images",
        }
        kept = {key: protocol[key] for key in ("rounding", *self.suite.names)}
        kept["bytes"] = "whole .mmt files and whole codec files"
        if self.anchors:
            kept["codecs"] = f"Pillow {PIL.__version__}" + "; 1/2 and 1/4: coded reduced, enlarged by Lanczos"
        return kept


def world_size() -> int:
    """Processes that evaluate together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
