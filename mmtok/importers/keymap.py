"""Declarative key maps: published weights -> ours, every key accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Config = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """Keys that fully match the regular expression `pattern` become `to` (a template with \\1 or \\g<name>).

    transform  reshapes the value, e.g. a 1x1 convolution into a linear layer
    """

    pattern: str
    to: str
    transform: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Drop:
    """Keys that fully match `pattern` are left out, for `reason`."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Mapped:
    """state: our keys; source: our key -> theirs; dropped: their key -> reason."""

    state: dict[str, Tensor]
    source: dict[str, str]
    dropped: dict[str, str]


@dataclass(frozen=True)
class Converted:
    """A published model as ours.

    config   {"class_path", "init_args"} for `mmtok.hub.build`
    state    its complete state dict, floating-point values in float32
    source   our key -> published key; keys the published file has no counterpart for are absent
    dropped  published keys that were left out, with the reason
    """

    config: Config
    state: dict[str, Tensor]
    source: dict[str, str]
    dropped: dict[str, str]


def apply(state: dict[str, Tensor], rules: Sequence[Rule | Drop]) -> Mapped:
    """Maps every key by the first rule that matches it; ValueError for keys no rule knows or that collide."""
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    mapped: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    dropped: dict[str, str] = {}
    unknown: list[str] = []
    for key, value in state.items():
        match, rule = next(((m, rule) for pattern, rule in compiled if (m := pattern.fullmatch(key))), (None, None))
        if match is None:
            unknown.append(key)
        elif isinstance(rule, Drop):
            dropped[key] = rule.reason
        elif isinstance(rule, Rule):
            target = match.expand(rule.to)
            if target in source:
                raise ValueError(f"importer: {key} and {source[target]} both map to {target}")
            source[target] = key
            value = value.float() if value.is_floating_point() else value
            mapped[target] = value if rule.transform is None else _transformed(key, value, rule.transform)
    if unknown:
        raise ValueError(f"importer: {len(unknown)} unknown keys, not of this system: {', '.join(unknown[:5])}")
    return Mapped(mapped, source, dropped)


def _transformed(key: str, value: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    try:
        return transform(value).contiguous()
    except (RuntimeError, IndexError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"importer: {key} is {list(value.shape)}, which fits no model ({reason})") from None


def check_complete(
    state: dict[str, Tensor], wanted: dict[str, Tensor], source: dict[str, str] | None = None
) -> None:
    """ValueError that names keys or shapes by which a converted state differs from a model's.

    source  our key -> published key, to name what the user's file holds
    """
    missing, unexpected = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or unexpected:
        raise ValueError(f"importer: wrong system or sizes: keys missing {missing[:5]}, too many {unexpected[:5]}")
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            theirs = (source or {}).get(key, key)
            named = key if theirs == key else f"{theirs} (here {key})"
            raise ValueError(f"importer: {named} is {list(state[key].shape)}, the model asks for {list(value.shape)}")


def res_block(theirs: str, ours: str) -> list[Rule]:
    """Rules for one residual block of the VQGAN family; both are prefixes, `theirs` a pattern."""
    return [
        Rule(theirs + r"\.(?P<part>norm1|conv1|norm2|conv2)\.(?P<leaf>weight|bias)", ours + r".\g<part>.\g<leaf>"),
        Rule(theirs + r"\.nin_shortcut\.(?P<leaf>weight|bias)", ours + r".shortcut.\g<leaf>"),
    ]


def attention(theirs: str, ours: str) -> list[Rule]:
    """Rules for one attention block of the VQGAN family."""
    return [
        Rule(theirs + r"\.(?P<part>norm|q|k|v)\.(?P<leaf>weight|bias)", ours + r".\g<part>.\g<leaf>"),
        Rule(theirs + r"\.proj_out\.(?P<leaf>weight|bias)", ours + r".out.\g<leaf>"),
    ]


def clip_block(theirs: str, ours: str) -> list[Rule]:
    """Rules for one transformer block under the names of CLIP's code; both are prefixes, `theirs` a pattern."""
    leaf = r"(?P<leaf>weight|bias)"
    return [
        Rule(theirs + r"\.ln_(?P<n>1|2)\." + leaf, ours + r".norm\g<n>.\g<leaf>"),
        Rule(theirs + r"\.attn\.in_proj_" + leaf, ours + r".attention.qkv.\g<leaf>"),
        Rule(theirs + r"\.attn\.out_proj\." + leaf, ours + r".attention.out.\g<leaf>"),
        Rule(theirs + r"\.mlp\.c_fc\." + leaf, ours + r".mlp.up.\g<leaf>"),
        Rule(theirs + r"\.mlp\.c_proj\." + leaf, ours + r".mlp.down.\g<leaf>"),
    ]


def flatten(value: Tensor) -> Tensor:
    """[1, ..., W] -> [W]."""
    return value.flatten()


def linear(value: Tensor) -> Tensor:
    """1x1 convolution [O, I, 1, 1] -> [O, I]."""
    return value.flatten(1)
