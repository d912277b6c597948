"""Teaching codes what is said: features of a frozen speech model, and how predicted features are compared with them.

Legend: B batch, C channels, T samples, F frames of the codec, N frames of the teacher, E teacher channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.losses.base import Teacher, Term, head_of
from mmtok.types import Batch, Reconstruction


class SpeechModel(nn.Module):
    """A frozen HuBERT, WavLM or wav2vec 2.0 of a local folder: x [B, C, T] -> float32 [B, N, E], N = T / 320 at 16 kHz.

    path         folder that transformers' `AutoModel` reads; nothing is downloaded
    sample_rate  Hz of x; resampled to 16 kHz (torchaudio) and averaged to mono
    layer        hidden state that is taken, 0 being the input of the first layer; "mean" averages all
    normalize    each clip to zero mean and unit variance, as most of these models were trained
    pad          zeros on both sides at 16 kHz, so that N is whole

    Clips of different length are heard one by one: most of these models normalize over time, so padding would be heard.
    """

    RATE, HOP = 16000, 320

    def __init__(
        self, path: str, sample_rate: int, layer: int | Literal["mean"] = "mean", normalize: bool = True,
        pad: int = 160,
    ) -> None:
        super().__init__()
        try:
            from transformers import AutoModel
        except ImportError:
            raise ValueError("SpeechModel needs transformers: pip install 'mmtok[teachers]'") from None
        try:
            self.model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=None)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"teacher.path: {path} is no folder of a transformers model: {reason}") from None
        self.sample_rate, self.layer, self.normalize, self.pad = sample_rate, layer, normalize, pad
        count = self.model.config.num_hidden_layers
        if layer != "mean" and not 0 <= layer <= count:
            raise ValueError(f"teacher.layer: this model has hidden states 0 to {count}, got {layer}")

    @torch.no_grad()
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None or bool((lengths == x.shape[-1]).all()):
            return self._features(x)
        each = [self._features(clip[None, :, : int(n)])[0] for clip, n in zip(x, lengths, strict=True)]
        return nn.utils.rnn.pad_sequence(each, batch_first=True)

    def _features(self, x: Tensor) -> Tensor:
        x = x.float().mean(1)
        if self.sample_rate != self.RATE:
            from torchaudio.functional import resample

            x = resample(x, self.sample_rate, self.RATE)
        if self.normalize:
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-7).sqrt()
        with torch.autocast(x.device.type, enabled=False):
            states = self.model(F.pad(x, (self.pad, self.pad)), output_hidden_states=True).hidden_states
        return (torch.stack(states).mean(0) if self.layer == "mean" else states[self.layer]).float()


class Semantic(Term):
    """Distance between features a model predicts, `heads[head]` float [B, F, E], and those of a teacher.

    axis       "feature": -mean log sigmoid(cosine over time of every feature dimension) (SpeechTokenizer's D-axis);
               "time": mean |difference| - mean log sigmoid(cosine over features of every frame) (its T-axis);
               "cosine": 1 - mean cosine of every frame (Mimi)
    teacher    frozen: (x [B, C, T], lengths) -> [B, N, E]; never saved. None reads `batch.features[features]`, which a
               batch may bring in any case: precomputed, cut with the clip, float [B, N, E]
    pool       teacher frames a codec frame: averaged over twice as many around its centre (Mimi: 4)
    hop        samples of a codec frame; needed where clips differ in length, so that only true frames count

    The frames both have are compared; ValueError when their numbers differ by more than two, or their widths do.
    """

    def __init__(
        self, axis: Literal["feature", "time", "cosine"] = "feature", teacher: nn.Module | None = None,
        head: str = "semantic", features: str = "semantic", pool: int = 1, hop: int | None = None,
    ) -> None:
        super().__init__()
        if pool < 1:
            raise ValueError(f"Semantic.pool must be at least 1, got {pool}")
        self.teacher = None if teacher is None else Teacher(teacher)
        self.axis, self.head, self.features, self.pool, self.hop = axis, head, features, pool, hop

    def forward(self, recon: Reconstruction, batch: Batch, step: int) -> Tensor:
        ours = head_of(recon, self.head, "Semantic").float()
        theirs = self._target(batch)
        count = min(ours.shape[1], theirs.shape[1])
        if ours.shape[2] != theirs.shape[2] or abs(ours.shape[1] - theirs.shape[1]) > 2:
            found = f"predicted [frames, width] are {list(ours.shape[1:])}, the teacher's {list(theirs.shape[1:])}"
            raise ValueError(f"Semantic: {found}; set the model's semantic_dim, or Semantic.pool")
        inside = self._inside(batch, count)
        ours, theirs = ours[:, :count] * inside, theirs[:, :count] * inside
        if self.axis == "feature":  # masked frames are zero on both sides: they leave a cosine over time alone
            return -F.logsigmoid(F.cosine_similarity(ours, theirs, dim=1)).mean()
        cosine = F.cosine_similarity(ours, theirs, dim=2)
        each = inside[..., 0].expand_as(cosine)
        self.stats = {"cosine": _mean(cosine, each).detach()}
        if self.axis == "cosine":
            return 1 - _mean(cosine, each)
        return _mean((ours - theirs).abs().mean(2), each) - _mean(F.logsigmoid(cosine), each)

    @torch.no_grad()
    def _target(self, batch: Batch) -> Tensor:
        if self.features in batch.features:
            found = batch.features[self.features].float()
        elif self.teacher is not None:
            found = self.teacher(batch.x, batch.lengths)
        else:
            raise ValueError(f"Semantic.teacher: name a model, or bring batch features named {self.features}")
        if self.pool == 1:
            return found
        pooled = F.avg_pool1d(
            found.transpose(1, 2), 2 * self.pool, self.pool, padding=self.pool // 2, count_include_pad=False
        )
        return pooled.transpose(1, 2)

    def _inside(self, batch: Batch, count: int) -> Tensor:
        """float [B or 1, frames, 1]: frames that lie wholly inside their clip."""
        if batch.lengths is None or bool((batch.lengths == batch.x.shape[-1]).all()):
            return torch.ones(1, count, 1, device=batch.x.device)
        if self.hop is None:
            raise ValueError("Semantic.hop: set it to the codec's hop, the clips of this batch differ in length")
        frames = (batch.lengths // self.hop).clamp(min=1)[:, None]
        return (torch.arange(count, device=batch.x.device) < frames).float()[..., None]


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1)
