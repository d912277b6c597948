"""What became of the keys of a published checkpoint, for people and for files."""

from __future__ import annotations

from typing import Any

from mmtok.importers.keymap import Converted


def key_record(converted: Converted) -> dict[str, Any]:
    """{mapped: our key -> theirs, dropped: their key -> reason, added: our keys without a counterpart in the file}."""
    added = sorted(set(converted.state) - set(converted.source))
    return {"mapped": dict(converted.source), "dropped": dict(converted.dropped), "added": added}


def describe(converted: Converted, every: bool = False) -> list[str]:
    """Lines for the terminal: counts, reasons with an example each; `every` names each key."""
    record = key_record(converted)
    lines = [f"mapped {len(record['mapped'])} keys"]
    if every:
        lines += [f"  {theirs} -> {ours}" for ours, theirs in record["mapped"].items()]
    reasons: dict[str, list[str]] = {}
    for key, reason in record["dropped"].items():
        reasons.setdefault(reason, []).append(key)
    for reason, keys in reasons.items():
        named = keys if every else keys[:3]
        more = f", ... ({len(keys)} keys)" if len(named) < len(keys) else ""
        lines.append(f"dropped {', '.join(named)}{more}: {reason}")
    if record["added"]:
        lines.append(f"not in the file, set here: {', '.join(record['added'])}")
    lines.append("missing: none (anything missing or unknown is an error)")
    return lines
