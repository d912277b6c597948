"""Golden folders and the tokenizers imported from them."""

import functools
import importlib
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from mmtok import importers
from mmtok.hub import build
from mmtok.importers.keymap import check_complete

ROOTS = [Path(__file__).parents[1] / "golden"] + [Path(p) for p in [os.environ.get("MMTOK_GOLDEN")] if p]
FAMILIES = [importlib.import_module(f"mmtok.importers.{name}") for name in importers.families()]
FAMILY = {system: family for family in FAMILIES for system in family.SYSTEMS}


def folders(*systems):
    """Every golden folder of these systems, whatever it is called: its config says what it is."""
    return [f for root in ROOTS for f in sorted((root / "image").glob("*/")) if system(f) in systems]


@functools.cache
def system(folder):
    """What is in a golden folder; sounds and videos bear the name of their folder."""
    if folder.parent.name != "image":
        return folder.name
    return json.loads((folder / "config.json").read_text())["system"]


def label(folder):
    """Name of a folder in test ids."""
    return f"{folder.parents[1].name}-{folder.name}"


def load_golden(folder):
    """(facts, tokenizer in eval mode, io with x in [-1, 1], Converted)."""
    facts = json.loads((folder / "config.json").read_text())
    converted = FAMILY[facts["system"]].convert(load_file(folder / "weights.safetensors"), facts)
    tokenizer = build(converted.config).eval()
    check_complete(converted.state, tokenizer.state_dict())
    tokenizer.load_state_dict(converted.state)
    io = load_file(folder / "io.safetensors")
    if "x" in io:
        io["x"] = io["x"] * 2 - 1 if facts["value_range"] == [0, 1] else io["x"]
    return facts, tokenizer, io, converted


def close(actual, expected, atol=2e-5, rtol=1e-4):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def published_range(facts, x):
    """Ours [-1, 1] in the range of the golden images."""
    return (x + 1) / 2 if facts["value_range"] == [0, 1] else x


def raw_image(facts, tokenizer, tokens):
    """Decoded from codes alone, in the published range, not clamped."""
    x = tokenizer.reconstruct(tokenizer.embed(tokens), tokens)
    return published_range(facts, tokenizer._from_model(x, tokens))


def check_keys(tokenizer, converted, own=frozenset({"quantizer.usage"})):
    """Every published key is mapped or dropped once; only `own` has no published counterpart."""
    published = set(converted.source.values()) | set(converted.dropped)
    assert len(converted.source) + len(converted.dropped) == len(published)
    assert set(tokenizer.state_dict()) - set(converted.source) == set(own)
