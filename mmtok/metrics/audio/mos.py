"""Predicted opinion scores that come with their weights: DistillMOS and DNSMOS.

Legend: T samples at 16 kHz.
"""

from __future__ import annotations

import importlib.util
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmtok.metrics.audio.base import Scorer, Unscorable
from mmtok.nn.spectrum import MelSpectrum

EXTRA = 'pip install "mmtok[speech]"'


class DistillMOS(Scorer):
    """Key `distillmos`: a small network distilled from XLS-R quality models (Stahl & Gamper, arXiv 2502.05356), v7.

    The package `distillmos` holds the weights. Clips of any length; it averages over windows by itself.
    """

    name, rate, keys, reference = "distillmos", 16000, ("distillmos",), False

    def __init__(self, device: torch.device | str = "cpu") -> None:
        try:
            from distillmos import ConvTransformerSQAModel
        except ImportError as error:
            raise ValueError(
                f"metrics: distillmos needs {error.name}: {EXTRA}, then pip install --no-deps distillmos xls-r-sqa"
            ) from None
        with redirect_stdout(io.StringIO()):  # it prints where its weights are
            model = ConvTransformerSQAModel()
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        if degraded.numel() < 400:
            raise Unscorable("shorter than 25 ms")
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return {"distillmos": float(self.model(degraded[None].to(self.device)))}


class DNSMOS(Scorer):
    """Keys `dnsmos_ovrl`, `dnsmos_sig`, `dnsmos_bak` (P.835, arXiv 2110.01763) and `dnsmos_p808` (arXiv 2010.15258).

    The ONNX networks inside the package `speechmos`, run here by onnxruntime as that package does: windows of 9.01 s,
    one a second, of the clip doubled until it is long enough; raw P.835 outputs through its polynomials; mean over
    windows. The package itself is never imported (it asks for librosa).
    """

    name, rate, reference = "dnsmos", 16000, False
    keys = ("dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak", "dnsmos_p808")
    SECONDS, WINDOW = 9.01, 144160
    # value = a raw^2 + b raw + c
    POLYNOMIALS = {
        "dnsmos_sig": (-0.08397278, 1.22083953, 0.0052439),
        "dnsmos_bak": (-0.13166888, 1.60915514, -0.39604546),
        "dnsmos_ovrl": (-0.06766283, 1.11546468, 0.04602535),
    }

    def __init__(self, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(f"metrics: dnsmos needs onnxruntime: {EXTRA}") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        folder = _package_folder("speechmos") / "dnsmos_models"

        def session(file: str) -> Any:
            return onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])

        self.p835, self.p808 = session("sig_bak_ovr.onnx"), session("model_v8.onnx")
        self.mel = MelSpectrum(16000, 321, 160, 120, power=2.0, scale="slaney", area=True, padding="none")

    def score(self, reference: Tensor, degraded: Tensor) -> dict[str, float]:
        wave = degraded.clamp(-1, 1).numpy()
        if not wave.size:
            raise Unscorable("no samples")
        while len(wave) < self.WINDOW:
            wave = np.concatenate([wave, wave])
        count = int(np.floor(len(wave) / 16000) - self.SECONDS) + 1
        # the package leaves out windows whose end, seconds as floats, rounds to a sample less; so must equal numbers
        starts = [i for i in range(count) if int((i + self.SECONDS) * 16000) - 16000 * i >= self.WINDOW]
        rows = [self._window(wave[16000 * i :][: self.WINDOW]) for i in starts]
        return {key: float(np.mean([row[key] for row in rows])) for key in self.keys}

    def _window(self, wave: NDArray[np.float32]) -> dict[str, float]:
        sig, bak, ovrl = self.p835.run(None, {"input_1": wave[None]})[0][0]
        raw = {"dnsmos_sig": sig, "dnsmos_bak": bak, "dnsmos_ovrl": ovrl}
        out = {key: float(np.polyval(np.array(p), raw[key])) for key, p in self.POLYNOMIALS.items()}
        out["dnsmos_p808"] = float(self.p808.run(None, {"input_1": self._log_mel(wave[:-160])[None]})[0][0][0])
        return out

    def _log_mel(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [900, 120]: decibels below the loudest, floored at -80 dB, mapped from [-40, 0] to [0, 1]."""
        padded = np.pad(wave, 160)  # zeros around, as librosa does; frames start at the first sample of this
        power = self.mel(torch.from_numpy(padded)[None, None])[0, 0].T.double()
        decibels = 10 * power.clamp(min=1e-10).log10()
        decibels = decibels - 10 * power.max().clamp(min=1e-10).log10()
        return ((decibels.clamp(min=float(decibels.max()) - 80) + 40) / 40).float().numpy()


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"metrics: dnsmos needs the networks in {name}: pip install --no-deps {name}")
    return Path(spec.submodule_search_locations[0])
