"""Encode + decode of our EnCodec, DAC and Mimi against the packages that publish them and transformers' models.

    python benchmarks/audio.py [--only encodec dac ...] [--seconds 10] [--rounds 5] [--json audio.json]
    python benchmarks/audio.py --memory 30 300
    python benchmarks/audio.py --only dac --step

Same random weights on both sides (ours are imported from theirs), codebooks scaled to the latents so that every code
says something, all codebooks sent. Peers that are not installed are left out: `pip install --no-deps encodec
descript-audio-codec descript-audiotools` and what these import. Contestants take turns; a figure is the median of the
rounds. `optimized` is `mmtok.optimize.optimize`, `bfloat16` the same with that type. `--step` times training steps of
the generator (forward, L1 and quantizer losses, backward, AdamW) and their peak memory, each side in processes of its
own that take turns; only DAC's published models train.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmtok import importers
from mmtok.models.audio.codec import WaveCodec
from mmtok.models.audio.long import decode_long, encode_long
from mmtok.optimize import optimize
from mmtok.types import Batch


class Peer(NamedTuple):
    """A published implementation: x [B, 1, T] -> codes [B, K, F], codes -> x, and our importer of its weights."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    model: nn.Module
    family: str
    published: dict[str, Any]


def encodec_package() -> Peer:
    from encodec import EncodecModel

    model = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    model.set_target_bandwidth(24.0)
    return Peer(lambda x: model.encode(x)[0][0], lambda codes: model.decode([(codes, None)]), model, "encodec", {})


def encodec_transformers() -> Peer:
    from transformers import EncodecConfig, EncodecModel

    model = EncodecModel(EncodecConfig()).eval()
    return Peer(
        lambda x: model.encode(x, bandwidth=24.0).audio_codes[0],
        lambda codes: model.decode(codes[None], [None]).audio_values, model, "encodec", {},
    )


DAC_24K = {"encoder_rates": [2, 4, 5, 8], "decoder_rates": [8, 5, 4, 2], "n_codebooks": 32}


def dac_package() -> Peer:
    import dac

    model = dac.DAC(sample_rate=24000, **DAC_24K).eval()
    return Peer(
        lambda x: model.encode(model.preprocess(x, 24000))[1],
        lambda codes: model.decode(model.quantizer.from_codes(codes)[0]), model, "dac", {"sample_rate": 24000},
    )


def dac_transformers() -> Peer:
    from transformers import DacConfig, DacModel

    config = DacConfig(
        sampling_rate=24000, downsampling_ratios=DAC_24K["encoder_rates"], upsampling_ratios=DAC_24K["decoder_rates"],
        n_codebooks=32, hop_length=320,
    )
    model = DacModel(config).eval()
    return Peer(
        lambda x: model.encode(x).audio_codes, lambda codes: model.decode(audio_codes=codes).audio_values[:, None],
        model, "dac", {},
    )


def mimi_transformers() -> Peer:
    from transformers import MimiConfig, MimiModel

    model = MimiModel(MimiConfig()).eval()
    return Peer(
        lambda x: model.encode(x, num_quantizers=32).audio_codes, lambda codes: model.decode(codes).audio_values,
        model, "mimi", {},
    )


PEERS = {
    "encodec": {"package": encodec_package, "transformers": encodec_transformers},
    "dac": {"package": dac_package, "transformers": dac_transformers},
    "mimi": {"transformers": mimi_transformers},
}


@torch.no_grad()
def fill_codebooks(model: nn.Module, x: Tensor, encode: Callable[[Tensor], Tensor]) -> None:
    """Codebooks about as wide as the latents, each depth narrower; zeros, as published packages start, say nothing."""
    seen: list[float] = []
    last = getattr(model, "downsample", model.encoder)
    hook = last.register_forward_hook(lambda _, args, out: seen.append(float(out.std())))
    encode(x)
    hook.remove()
    depth = 0
    for name, value in model.named_buffers():
        if name.endswith((".embed", ".embed_sum")):
            value.copy_(torch.randn_like(value) * seen[0] * 0.9**depth)
            depth += 1
        elif name.endswith((".cluster_usage", ".inited", ".initialized")):
            value.fill_(1)
    for module in model.modules():
        if hasattr(module, "_embed"):
            module._embed = None  # Mimi keeps what it divided once


def ours(peer: Peer) -> WaveCodec:
    if hasattr(peer.model, "save_pretrained"):
        with tempfile.TemporaryDirectory() as folder:
            peer.model.save_pretrained(folder)  # names in memory are not the published ones
            return importers.load(peer.family, folder)  # type: ignore[return-value]
    family = importlib.import_module(f"mmtok.importers.{peer.family}")
    state = peer.model.state_dict()
    return importers.instantiate(family.convert(state, family.facts(peer.published, state)))  # type: ignore[return-value]


@torch.no_grad()
def timed(encode: Callable[[Tensor], Any], decode: Callable[[Any], Tensor], x: Tensor) -> tuple[float, float]:
    """Seconds of encoding and of decoding."""
    start = time.perf_counter()
    codes = encode(x)
    middle = time.perf_counter()
    decode(codes)
    return middle - start, time.perf_counter() - middle


def snr(reference: Tensor, other: Tensor) -> float:
    """dB."""
    n = min(reference.shape[-1], other.shape[-1])
    reference, other = reference[..., :n], other[..., :n]
    return float(10 * (reference.square().sum() / (reference - other).square().sum().clamp(min=1e-20)).log10())


@torch.no_grad()
def compare(system: str, seconds: float, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    t = torch.arange(int(seconds * 24000)) / 24000
    buzz = torch.stack([(2 * torch.pi * 140 * k * t + k).sin() / k for k in range(1, 30)]).sum(0)
    x = (0.1 * buzz + 0.01 * torch.randn(len(t)))[None, None]
    contestants: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {}
    result: dict[str, Any] = {"seconds": seconds}
    model: WaveCodec | None = None
    for name, build in PEERS[system].items():
        try:
            peer = build()
        except ImportError as error:
            result[name] = f"not installed: {error.name}"
            continue
        fill_codebooks(peer.model, x[..., :24000], peer.encode)
        # each peer has weights of its own; time does not depend on them, equality of codes does
        model = ours(peer)
        contestants[name] = (peer.encode, peer.decode)
        quick = {"plain": model, "optimized": optimize(copy.deepcopy(model))}
        codes = peer.encode(x)
        result[f"equal_codes_{name}"] = {
            label: float((codec.encode(x).codes == codes).double().mean()) for label, codec in quick.items()
        }
        result[f"snr_{name}"] = {
            label: snr(peer.decode(codes).clamp(-1, 1), codec.decode(codec.encode(x))) for label, codec in quick.items()
        }
    if model is None:
        raise ValueError(f"--only {system}: none of its packages is installed")
    fast, half = quick["optimized"], optimize(copy.deepcopy(model), torch.bfloat16)
    codes, there = model.encode(x).codes, half.encode(x).codes
    result["bfloat16_equal_codes"] = float((codes == there).double().mean())
    result["bfloat16_equal_first_codebook"] = float((codes[:, 0] == there[:, 0]).double().mean())
    tokens = model.encode(x)
    result["bfloat16_decoder_snr"] = snr(model.decode(tokens), half.decode(tokens))
    for label, codec in (("plain", model), ("optimized", fast), ("bfloat16", half)):
        contestants[label] = (codec.encode, codec.decode)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, (encode, decode) in contestants.items():
            times[name].append(timed(encode, decode, x))
    middle = {
        name: [statistics.median(pair[i] for pair in found[1:]) for i in range(2)] for name, found in times.items()
    }
    result["times"] = {name: {"encode": e, "decode": d, "both": e + d} for name, (e, d) in middle.items()}
    for rival in [name for name in PEERS[system] if name in middle]:
        result[f"faster_than_{rival}"] = {
            name: {"encode": middle[rival][0] / e, "both": sum(middle[rival]) / (e + d)}
            for name, (e, d) in middle.items() if name not in PEERS[system]
        }
    return result


@torch.no_grad()
def long_file(system: str, seconds: int) -> float:
    """MB at the peak of coding so many seconds that arrive in pieces."""
    model = optimize(ours(next(iter(PEERS[system].values()))()))
    pieces = (0.1 * torch.randn(1, 24000) for _ in range(seconds))
    for _ in decode_long(model, encode_long(model, pieces)):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def training_steps(side: str, count: int = 4) -> tuple[float, float]:
    """Median seconds of a generator step of DAC 24 kHz on 2 crops of .4 s, and MB at the peak of the process."""
    torch.manual_seed(0)
    peer = dac_transformers()
    if side == "transformers":
        model = peer.model.train()
        model.apply_weight_norm()  # DAC trains with it; transformers' model leaves it to the caller
    else:
        model = ours(peer).train()
    del peer  # its weights must not count for ours
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    times = []
    for _ in range(count + 1):
        x = 0.1 * torch.randn(2, 1, 9600)
        start = time.perf_counter()
        if side == "transformers":
            out = model(x)
            made, terms = out.audio_values.view(len(x), 1, -1), out.loss.mean()
        else:
            recon = model(Batch.of(x))
            made, terms = recon.x, recon.losses["commit"] * 0.25 + recon.losses["codebook"]
        loss = (made - x[..., : made.shape[-1]]).abs().mean() + terms
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare_steps(rounds: int) -> dict[str, Any]:
    found: dict[str, list[list[float]]] = {"transformers": [], "ours": []}
    for _ in range(rounds):
        for side, seen in found.items():
            command = [sys.executable, __file__, "--only-step", side]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seen.append(json.loads(done.stdout.strip().splitlines()[-1]))
    middle = {side: [statistics.median(column) for column in zip(*seen, strict=True)] for side, seen in found.items()}
    sides = {side: {"seconds": seconds, "peak_mb": peak} for side, (seconds, peak) in middle.items()}
    (theirs, their_peak), (mine, my_peak) = middle.values()
    return sides | {"faster_than_transformers": theirs / mine, "memory_of_transformers": my_peak / their_peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="+", metavar="SECONDS", help="peak memory of such files")
    parser.add_argument("--only-memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--step", action="store_true", help="training steps of DAC against transformers' model")
    parser.add_argument("--only-step", choices=("transformers", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="results are laid into this file, system by system")
    options = parser.parse_args()
    if options.only_memory:
        print(long_file(options.only[0], options.only_memory))
        return
    if options.only_step:
        print(json.dumps(training_steps(options.only_step)))
        return
    if options.step and options.only != ["dac"]:
        parser.error("--step: only DAC's published model trains; say --only dac")
    found = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    found |= {
        "torch": torch.__version__, "threads": torch.get_num_threads(), "cpus": os.cpu_count(),
        "machine": platform.machine(),
    }
    for system in options.only:
        entry = found.setdefault(system, {})
        if options.memory:
            for seconds in options.memory:
                command = [sys.executable, __file__, "--only", system, "--only-memory", str(seconds)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                entry.setdefault("peak_mb", {})[str(seconds)] = round(float(done.stdout.strip().splitlines()[-1]))
        elif options.step:
            entry["training_step"] = compare_steps(options.rounds)
        else:
            entry |= compare(system, options.seconds, options.rounds)
        print(json.dumps({system: entry}, indent=1), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
