"""Golden folders of discriminators and loss terms, and small wrappers the tests share."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from mmtok.types import Batch, Reconstruction, Tokens

ROOTS = [Path(__file__).parents[1] / "golden"] + [Path(p) for p in [os.environ.get("MMTOK_GOLDEN")] if p]


def folders(name):
    """Every golden folder of this name."""
    return [root / "audio" / name for root in ROOTS if (root / "audio" / name).is_dir()]


def load_golden(folder):
    """(config, weights or {}, io), floating tensors in float32."""
    weights = folder / "weights.safetensors"
    found = [load_file(weights) if weights.exists() else {}, load_file(folder / "io.safetensors")]
    found = [{k: v.float() if v.is_floating_point() else v for k, v in part.items()} for part in found]
    return json.loads((folder / "config.json").read_text()), *found


def recon_of(x):
    """A reconstruction of x with one meaningless code an item."""
    keep = torch.ones(len(x), 1, 1, dtype=torch.bool)
    size = torch.full((len(x), x.dim() - 2), x.shape[-1])
    return Reconstruction(x, Tokens((keep.long() * 0,), (keep,), ((2,),), size))


def batch_of(x, lengths=None):
    """A batch of audio, padded when `lengths` are given."""
    batch = Batch.of(x)
    return batch if lengths is None else Batch(x, batch.keys, batch.size, lengths=torch.tensor(lengths))


def near(actual, expected, share):
    """Within `share` of the largest value."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=share * float(expected.abs().max()))
