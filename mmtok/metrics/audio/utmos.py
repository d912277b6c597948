"""UTMOS22 strong learner (Saeki et al., VoiceMOS Challenge 2022, arXiv 2204.02152): predicted naturalness of speech.

Legend: B batch, T samples at 16 kHz, F frames, D width of the trunk, E width of an embedding, R width of the LSTM.

This is what papers on codecs call UTMOS. UTMOSv2 is another metric. Weights are never downloaded; see `find_weights`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from mmtok.metrics.audio.base import Scorer, Unscorable
from mmtok.nn.wav2vec2 import Wav2Vec2, fold_position_conv
from mmtok.weights import WeightFile, find, load_state

DOMAIN, JUDGE = 0, 288  # the rows everyone scores with
FILES = (
    WeightFile(
        "utmos22_strong_step7459_v1.pt",
        "https://github.com/tarepan/SpeechMOS/releases/download/v1.0.0/utmos22_strong_step7459_v1.pt",
    ),
    WeightFile(
        "utmos_state_dict.pt", "https://huggingface.co/Blinorot/UTMOS-PyTorch/resolve/main/utmos_state_dict.pt"
    ),
    WeightFile(
        "epoch=3-step=7459.ckpt",
        "https://huggingface.co/spaces/sarulab-speech/UTMOS-demo/resolve/main/epoch%3D3-step%3D7459.ckpt",
    ),
)
# the training layout of the two unbaked files -> ours, which is the baked one's
_NAMES = {
    "feature_extractors.0.ssl_model.": "wav2vec2.",
    "output_layers.0.decoder_rnn.": "blstm.",
    "output_layers.1.net.0.": "projection.0.",
    "output_layers.1.net.3.": "projection.2.",
}


class UTMOS22Strong(nn.Module):
    """wave [B, T] in [-1, 1] at 16 kHz, all of one true length -> score [B] = 2 * mean over frames + 3, not clipped.

    trunk             gives features [B, F, D]
    embedding         E of the domain and of the judge (three quarters of the released 1024 are features)
    rnn, projection   widths of the LSTM (each direction) and of the hidden layer
    """

    def __init__(self, trunk: Wav2Vec2, embedding: int = 128, rnn: int = 512, projection: int = 2048) -> None:
        super().__init__()
        dim = trunk.post_extract_proj.out_features
        self.wav2vec2 = trunk
        self.domain_emb = nn.Parameter(torch.zeros(1, embedding))
        self.judge_emb = nn.Parameter(torch.zeros(1, embedding))
        self.blstm = nn.LSTM(dim + 2 * embedding, rnn, batch_first=True, bidirectional=True)
        self.projection = nn.Sequential(nn.Linear(2 * rnn, projection), nn.ReLU(), nn.Linear(projection, 1))

    def forward(self, wave: Tensor) -> Tensor:
        return 2 * self.frame_scores(self.wav2vec2(wave)).mean((1, 2)) + 3

    def frame_scores(self, features: Tensor) -> Tensor:
        """[B, F, D] -> [B, F, 1]."""
        shape = (*features.shape[:2], -1)
        given = [embedding[:, None].expand(shape) for embedding in (self.domain_emb, self.judge_emb)]
        return self.projection(self.blstm(torch.cat([features, *given], -1))[0])

    @classmethod
    def from_state(cls, state: dict[str, Tensor], heads: int | None = None) -> UTMOS22Strong:
        """The frozen module of a published state dict in any of the three layouts; sizes are read off the tensors.

        heads: of attention, which leave no trace in a state dict; None takes one per 64 channels, as the release has.
        ValueError names keys that are missing or belong to another network.
        """
        state = baked(state)
        try:
            convs = [state[f"wav2vec2.feature_extractor.conv_layers.{i}.0.weight"].shape for i in range(7)]
            dim, _ = state["wav2vec2.post_extract_proj.weight"].shape
            position = state["wav2vec2.encoder.pos_conv.0.weight"].shape
            ffn = state["wav2vec2.encoder.layers.0.fc1.weight"].shape[0]
            projection, both = state["projection.0.weight"].shape
            embedding = state["domain_emb"].shape[1]
        except KeyError as error:
            raise ValueError(f"utmos: these are not weights of UTMOS22 strong: {error.args[0]} is missing") from None
        layers = 1 + max(int(key.split(".")[3]) for key in state if key.startswith("wav2vec2.encoder.layers."))
        trunk = Wav2Vec2(
            dim, heads or max(1, dim // 64), layers, ffn, convs[0][0], tuple(shape[2] for shape in convs), position[2],
            dim // position[1],
        )
        model = cls(trunk, embedding, both // 2, projection)
        wrong = model.load_state_dict(state, strict=False)
        if wrong.missing_keys or wrong.unexpected_keys:
            raise ValueError(f"utmos: missing {wrong.missing_keys[:3]}, not known {wrong.unexpected_keys[:3]}")
        return model.eval().requires_grad_(False)


class UTMOS(Scorer):
    """The metric, key `utmos22_strong`: only the published network at its published sizes may bear this name."""

    name, rate, keys, reference = "utmos", 16000, ("utmos22_strong",), False

    def __init__(self, path: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        """ValueError tells which files would do and where they belong."""
        file = find_weights(path)
        self.model = UTMOS22Strong.from_state(load_state(file)).to(device)
        if (len(self.model.wav2vec2.encoder.layers), self.model.blstm.input_size) != (12, 1024):
            raise ValueError(f"utmos: {file} is not UTMOS22 strong but a network of other sizes")
        self.device = device

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        if degraded.numel() < self.model.wav2vec2.shortest:
            raise Unscorable("shorter than one frame")
        with torch.no_grad(), torch.autocast(torch.device(self.device).type, enabled=False):
            return {self.keys[0]: float(self.model(degraded[None].to(self.device)))}


def baked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict in our layout: prefixes renamed, domain and judge picked, position convolution folded."""
    nested = state.get("state_dict")
    state = nested if isinstance(nested, dict) else state
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == "feature_extractors.1.embedding.weight":
            out["domain_emb"] = value[DOMAIN : DOMAIN + 1]
        elif key == "output_layers.0.judge_embedding.weight":
            out["judge_emb"] = value[JUDGE : JUDGE + 1]
        elif not key.endswith(".mask_emb"):  # only used in pre-training
            prefix = next((theirs for theirs in _NAMES if key.startswith(theirs)), "")
            out[_NAMES.get(prefix, "") + key.removeprefix(prefix)] = value
    return fold_position_conv(out)


def find_weights(path: str | Path | None = None) -> Path:
    """One of the three published files: `path` (a file, or a folder that holds one), MMTOK_WEIGHTS_DIR, torch.hub's
    checkpoint folder, or the cache of the Hugging Face hub. ValueError names them when there is none."""
    if path is not None and not Path(path).expanduser().is_dir():
        return _exists(Path(path).expanduser())
    for file in FILES:
        if path is not None:
            found: Path | None = Path(path).expanduser() / file.name
            found = found if found is not None and found.is_file() else None
        else:
            found = find(file.name) or _hub_cache(file.name)
        if found is not None:
            return found
    names = " or ".join(file.name for file in FILES)
    where = str(path) if path is not None else (
        f"the folder that MMTOK_WEIGHTS_DIR names or {Path(torch.hub.get_dir()) / 'checkpoints'}"
    )
    raise ValueError(f"weights: UTMOS22 strong was not found. Put {names} into {where}; {FILES[0].url} has the first")


def _exists(file: Path) -> Path:
    if not file.is_file():
        raise ValueError(f"weights: {file} does not exist (expected UTMOS22 strong)")
    return file


def _hub_cache(name: str) -> Path | None:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    return next(iter(sorted(cache.glob(f"*UTMOS*/snapshots/*/{name}"))), None) if cache.is_dir() else None
