"""Runs the golden tests and writes what they measured: python tests/importers/golden_table.py [PAGE]

One line a system: codes that equal the reference's, the largest difference of anything decoded (in the unit of the
reference's output), of anything else that is compared, and what the catalogue says of the published model. PAGE is
docs/golden.md; without it the table is printed. MMTOK_GOLDEN adds the larger folders.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

HERE = Path(__file__).parent
DECODED = ("recon", "decoded")  # parts of the names of outputs
ENTRIES = {  # golden folder -> entry of the catalogue whose model it is, at its published size
    "taming_vqgan": "vqgan-f16-16384", "maskgit_vqgan": "maskgit-vqgan", "llamagen_vq": "llamagen-vq16",
    "fqgan_dual": "fqgan-dual-ds16", "open_magvit2_lfq": "open-magvit2-256", "ibq": "ibq-16384",
    "var_vqvae": "var-vqvae", "bsq_vit": "bsq-vit-18", "bae": "bae-16", "titok_two_stage": "titok-l32",
    "titok_single_stage": "titok-bl128-vq8k", "tatitok_vq": "tatitok-bl128-vq", "one_d_piece": "one-d-piece-l256",
    "flextok": "flextok-d18-d28", "karl": "karl-small", "alit": "alit-small",
    "imagefolder_vq_perturbation": "robusttok",
    "tokenflow_quantizer": "tokenflow-clipb", "seed_quantizer": "seed-2", "lavit": "lavit-2",
    "cosmos_dv": "cosmos-dv8x8x8", "cosmos_dv_4x8x8_p2": "cosmos-1-dv4x8x8-360p",
    "cosmos_dv_8x16x16": "cosmos-dv8x16x16",
    "larp": "larp-l-long", "adaptok": "adaptok", "vidtok_v1_0": "vidtok-fsq-488-32768",
    "vidtok_v1_1": "vidtok-fsq-488-32768-v1-1", "cogvideox_vae": "cogvideox-vae",
    "open_magvit2_video": "open-magvit2-video", "omnitokenizer_vq": "omnitokenizer-k600",
    "elastictok_fsq": "elastictok-fsq", "encodec": "encodec-24khz-original", "encodec_hf": "encodec-24khz",
    "encodec_48k": "encodec-48khz-original", "encodec_48k_hf": "encodec-48khz",
    "dac": "dac-44khz", "dac_hf": "dac-44khz",
    "snac": "snac-24khz", "snac_attention": "snac-44khz", "mimi": "mimi", "mimi_moshi": "mimi-moshi",
    "speechtokenizer": "speechtokenizer", "wavtokenizer": "wavtokenizer-small-75", "bigcodec": "bigcodec",
    "vocos_encodec": "vocos-encodec-24khz", "xcodec": "xcodec-hubert-librispeech",
    "xcodec_original": "xcodec-hubert-librispeech", "xcodec2": "xcodec2", "xcodec2_original": "xcodec2",
    "glm_tokenizer": "glm-4-voice-tokenizer",
}  # fmt: skip


class Measurements:
    """pytest plugin: knows every tensor of the golden files by its memory, and watches what is compared with it."""

    def __init__(self) -> None:
        self.owner: dict[int, tuple[str, str]] = {}
        self.kept: list[dict[str, Tensor]] = []  # no memory may be used twice
        self.codes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.decoded: dict[str, float] = defaultdict(float)
        self.other: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []
        load, equal = safetensors.torch.load_file, torch.equal
        torch.cat, torch.stack = (self.follow(join) for join in (torch.cat, torch.stack))  # type: ignore[assignment]
        torch.testing.assert_close = self.watch(torch.testing.assert_close)

        def load_file(path: Any, *given: Any) -> dict[str, Tensor]:
            found = load(path, *given)
            if Path(path).name == "io.safetensors":
                self.kept.append(dict(found))
                for name, value in found.items():
                    self.owner[value.untyped_storage().data_ptr()] = (Path(path).parent.name, name)
            return found

        def watched_equal(a: Tensor, b: Tensor) -> bool:
            for ours, theirs in ((a, b), (b, a)):
                if (found := self.find(theirs)) and ours.shape == theirs.shape and not theirs.is_floating_point():
                    count = self.codes[found[0]]
                    count[0] += int((ours == theirs).sum())
                    count[1] += theirs.numel()
                    break
            return equal(a, b)

        safetensors.torch.load_file, torch.equal = load_file, watched_equal  # type: ignore[assignment]

    def follow(self, join: Any) -> Any:
        """Parts of one file laid together still belong to it."""

        def joined(tensors: Any, *given: Any, **named: Any) -> Tensor:
            out = join(tensors, *given, **named)
            owners = [self.find(part) for part in tensors]
            if owners and owners[0] and all(owner and owner[0] == owners[0][0] for owner in owners):
                self.kept.append({owners[0][1]: out})
                self.owner[out.untyped_storage().data_ptr()] = owners[0]
            return out

        return joined

    def find(self, value: Tensor) -> tuple[str, str] | None:
        return self.owner.get(value.untyped_storage().data_ptr())

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for module in {item.getparent(pytest.Module).obj for item in items}:  # type: ignore[union-attr]
            for name in ("close", "relative"):
                if hasattr(module, name):
                    setattr(module, name, self.watch(getattr(module, name)))

    def watch(self, compare: Any) -> Any:
        def close(actual: Any, expected: Any, *given: Any, **named: Any) -> None:
            found = self.find(expected) if isinstance(expected, Tensor) and isinstance(actual, Tensor) else None
            if found and actual.shape == expected.shape and actual.is_floating_point():
                error = float((actual.detach().double() - expected.double()).abs().max())
                side = self.decoded if any(part in found[1] for part in DECODED) else self.other
                side[found[0]] = max(side[found[0]], error)
            compare(actual, expected, *given, **named)

        return close

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def table(found: Measurements) -> str:
    """Markdown."""
    from mmtok.catalogue import published

    entries = published()
    lines = [
        "| golden folder | codes equal | decoded | others | published model | M | numbers |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted({*found.codes, *found.decoded, *found.other}):
        equal, count = found.codes.get(name, [0, 0])
        errors = [f"{side[name]:.1e}" if name in side else "-" for side in (found.decoded, found.other)]
        entry = entries.get(ENTRIES.get(name, ""))
        told = ["-"] * 3
        if entry is not None:
            numbers = ", ".join(f"{key} {value:g}" for key, value in entry.numbers.items()) or "-"
            told = [f"`{entry.name}`", "-" if entry.parameters is None else f"{entry.parameters:g}", numbers]
        codes = f"{equal} of {count}" if count else "-"
        lines.append(f"| `{name}` | {codes} | {errors[0]} | {errors[1]} | {' | '.join(told)} |")
    return "\n".join(lines)


HEAD = """# Measured on golden files

Written by `python tests/importers/golden_table.py docs/golden.md`; do not edit. Random weights under the published key
names, run by the authors' code and by ours ([the folders](../tests/golden/README.md), and larger ones of the kind).
*Codes equal*: positions compared, over all folders, lengths and prefixes. *Decoded*: the largest absolute difference of
media that both made from the codes; images and video in the reference's range, audio around [-1, 1]. *Others*: latents,
logits, losses, features. The folders do not decode to media where a dash stands. M: million parameters at full size;
numbers are the authors' ([models](models.md)).

"""


if __name__ == "__main__":
    measurements = Measurements()
    tests = sorted(map(str, HERE.glob("test_golden*.py")))
    pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", *tests], plugins=[measurements])
    if measurements.failed:
        raise SystemExit(f"failed: {', '.join(measurements.failed)}")
    page = table(measurements)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(HEAD + page + "\n")
    else:
        print(page)
