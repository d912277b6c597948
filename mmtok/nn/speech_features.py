"""Frozen speech models as frontends: what a codec needs to hear before it can code (HuBERT, w2v-BERT 2.0).

Legend: B batch, T samples at 16 kHz, F frames (one per 320 samples in published models), E width.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.wav2vec2 import Wav2Vec2, fold_position_conv


class HubertFeatures(nn.Module):
    """x [B, 1, T], T whole frames -> mean of all hidden states [B, F, E] of HuBERT or wav2vec 2.0 (base layout).

    Frozen, and part of what is saved with a codec. Arguments: see `Wav2Vec2`. Half a frame of zeros is put on both
    sides, so that there is a frame for every 320 samples (X-Codec).
    """

    def __init__(
        self, dim: int = 768, heads: int = 12, layers: int = 12, ffn: int = 3072, conv_dim: int = 512,
        pos_kernel: int = 128, pos_groups: int = 16, kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2),
    ) -> None:
        super().__init__()
        self.dim = dim
        self.trunk = Wav2Vec2(dim, heads, layers, ffn, conv_dim, kernels, pos_kernel, pos_groups)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        states = self.trunk.states(F.pad(x[:, 0], (self.trunk.hop // 2, self.trunk.hop // 2)))
        return torch.stack(states).mean(0)


_HUBERT = {
    "feature_projection.layer_norm": "layer_norm", "feature_projection.projection": "post_extract_proj",
    "encoder.layer_norm": "encoder.layer_norm", "encoder.pos_conv_embed.conv": "encoder.pos_conv.0",
}
_LAYER = {
    **{f"attention.{part}_proj": f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")},
    "layer_norm": "self_attn_layer_norm", "feed_forward.intermediate_dense": "fc1", "feed_forward.output_dense": "fc2",
    "final_layer_norm": "final_layer_norm",
}


def hubert_key(key: str) -> str | None:
    """Name in `Wav2Vec2` of a key of transformers' HubertModel or Wav2Vec2Model; None for what only training reads.

    ValueError for a key of another network (WavLM, or one with a norm after every convolution).
    """
    if key == "masked_spec_embed":
        return None
    place, _, leaf = key.rpartition(".")
    for theirs, ours in _HUBERT.items():
        if key.startswith(theirs + "."):
            return ours + key.removeprefix(theirs)
    parts = key.split(".")
    if key.startswith("feature_extractor.conv_layers."):
        number, name = parts[2], parts[3]
        if name == "conv" and leaf == "weight":
            return f"feature_extractor.conv_layers.{number}.0.weight"
        if name == "layer_norm" and number == "0":
            return f"feature_extractor.conv_layers.0.2.{leaf}"
    if key.startswith("encoder.layers."):
        inner = ".".join(parts[3:-1])
        if inner in _LAYER:
            return f"encoder.layers.{parts[2]}.{_LAYER[inner]}.{leaf}"
    raise ValueError(f"speech model: {place}.{leaf} is no part of HuBERT base or wav2vec 2.0 base")


def hubert_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of a `Wav2Vec2` from transformers' names."""
    named = {ours: value.float() for key, value in state.items() if (ours := hubert_key(key)) is not None}
    return fold_position_conv(named)


def hubert_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of `HubertFeatures` but its heads, from transformers' names."""
    direction = next(
        value for key, value in state.items()
        if key.startswith("encoder.pos_conv_embed.conv.") and key.endswith((".weight_v", ".original1", "conv.weight"))
    )
    dim = len(state["encoder.layer_norm.weight"])
    convolutions = [key for key in state if re.fullmatch(r"feature_extractor\.conv_layers\.\d+\.conv\.weight", key)]
    convolutions.sort(key=lambda key: int(key.split(".")[2]))
    return {
        "dim": dim, "layers": len({key.split(".")[2] for key in state if key.startswith("encoder.layers.")}),
        "ffn": len(state["encoder.layers.0.feed_forward.intermediate_dense.bias"]),
        "conv_dim": len(state["feature_extractor.conv_layers.0.conv.weight"]),
        "pos_kernel": direction.shape[2], "pos_groups": dim // direction.shape[1],
        "kernels": [state[key].shape[2] for key in convolutions],
    }
