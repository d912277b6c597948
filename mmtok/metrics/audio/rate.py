"""What a second of audio costs: nominal, under the stored code tables, and whole files."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.bitstream import pack
from mmtok.metrics.base import Metric
from mmtok.metrics.rate import entropy_bits, side_bits
from mmtok.types import Tokens


class AudioRate(Metric):
    """All bits over all seconds, in kilobits per second; short and long utterances weigh by their length.

    kbps_nominal  log2 of the codebook a sent code, plus what says how many are sent, plus side information
    kbps_entropy  codes priced by the tables stored with the weights (fitted on training data); absent without tables
    kbps_file     whole `.mmt` files, one an utterance, header and checksum included
    """

    def __init__(self) -> None:
        names = ("seconds", "sent", "nominal", "entropy", "bytes")
        states = {name: torch.zeros(1, dtype=torch.float64) for name in names}
        super().__init__(count=torch.zeros(1, dtype=torch.int64), tabled=torch.zeros(1, dtype=torch.int64), **states)

    def update(self, tokens: Tokens) -> Tensor:
        """Counts a batch; returns the file bytes of every item, int64 [B]. ValueError when tokens state no rate."""
        tokens = tokens.to("cpu")
        if tokens.rate is None:
            raise ValueError("rate: these tokens state no sample rate, so they have no kbps")
        sizes = torch.tensor([len(pack(tokens[i])) for i in range(len(tokens))], dtype=torch.int64)
        self.add("count", torch.tensor([len(tokens)]))
        self.add("seconds", (tokens.size[:, 0].double() / tokens.rate).sum().view(1))
        self.add("sent", tokens.num_sent.sum().view(1))
        self.add("nominal", tokens.bits.sum().view(1))
        self.add("bytes", sizes.sum().view(1))
        if tokens.tables is not None:
            self.add("tabled", torch.tensor([len(tokens)]))
            self.add("entropy", (entropy_bits(tokens) + side_bits(tokens)).sum().view(1))
        return sizes

    def compute(self) -> dict[str, float]:
        state = {name: float(value) for name, value in self.states.items()}
        count, seconds = state["count"], state["seconds"]
        if not count:
            raise ValueError("rate: no utterances were evaluated")
        out = {
            "tokens_per_second": state["sent"] / seconds, "kbps_nominal": state["nominal"] / seconds / 1000,
            "kbps_file": 8 * state["bytes"] / seconds / 1000, "bytes_file": state["bytes"] / count,
        }
        if state["tabled"] == count:
            out["kbps_entropy"] = state["entropy"] / seconds / 1000
        return out


class FileRate(Metric):
    """Whole codec files, and what of them is packets: the container of a short Ogg file is a fair part of it."""

    def __init__(self) -> None:
        counts = {name: torch.zeros(1, dtype=torch.int64) for name in ("count", "bytes", "payload")}
        super().__init__(seconds=torch.zeros(1, dtype=torch.float64), **counts)

    def update(self, size: int, payload: int, seconds: float) -> None:
        """Counts one file."""
        for name, value in (("count", 1), ("bytes", size), ("payload", payload), ("seconds", seconds)):
            self.add(name, torch.tensor([value]))

    def compute(self) -> dict[str, float]:
        count, size, payload, seconds = (float(self.states[n]) for n in ("count", "bytes", "payload", "seconds"))
        if not count:
            raise ValueError("rate: no files were counted")
        return {
            "kbps_file": 8 * size / seconds / 1000, "kbps_payload": 8 * payload / seconds / 1000,
            "bytes_file": size / count,
        }
