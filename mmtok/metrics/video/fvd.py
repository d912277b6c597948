"""Frechet video distance of reconstructions: feature networks of clips behind one protocol, which is in the key.

Legend: B clips, T frames, H W pixels, D features.

`rfvd_<network>_<frames>f_<side>_<rate>_<count>` compares reconstructions with the same clips. Networks, their resizing,
the number of frames and their rate move this distance by tens, so values of different keys never share a table:

  i3dts     I3D of TensorFlow hub, as TorchScript (StyleGAN-V; LARP, AdapTok, EVATok): logits [400], covariance over n
  i3dtats   I3D of VideoGPT and TATS (OmniTokenizer, Open-MAGVIT2): logits [400], covariance over n - 1
  videomae  VideoMAE-v2 ViT-g tuned on SSv2 (content-debiased FVD, arXiv 2404.12391): mean token [1408] of the first 16
            frames, covariance over n

All three take uint8 clips, resized as a whole to 224 x 224 (bilinear, not antialiased). Weights are found by
`mmtok.weights`, never downloaded; those of I3D are told by their hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.metrics.frechet import Moments, ReferenceMoments
from mmtok.metrics.video.i3d import I3D
from mmtok.metrics.video.videomae import VideoMAE
from mmtok.weights import WeightFile, load_state, require

SIDE = 224
LEAST_FRAMES = 10  # of I3D, by the usual protocols
I3D_SCRIPT = WeightFile("i3d_torchscript.pt", "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt")
I3D_TATS = WeightFile(
    "i3d_pretrained_400.pt", "https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt"
)
VIDEOMAE = WeightFile(
    "vit_g_hybrid_pt_1200e_ssv2_ft.pth", "https://huggingface.co/OpenGVLab/InternVideoMAE_models (in mae-g/)"
)
SHA256 = {
    I3D_SCRIPT.name: "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
    I3D_TATS.name: "55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343",
}


class ClipFeatures(Protocol):
    """A network of clips.

    name    its part of the key; dim: D
    frames  fewest frames of a clip
    biased  covariances divide by n instead of n - 1
    about   the protocol in a line
    """

    name: str
    dim: int
    frames: int
    biased: bool
    about: str

    def __call__(self, clips: Tensor) -> Tensor:
        """float32 [B, D] of uint8 [B, 3, T, H, W]."""


class ScriptedI3D:
    """The TorchScript program itself: float [B, 3, T, 224, 224] in [-1, 1] -> logits. Only `load` may call it i3dts."""

    dim, frames, biased = 400, LEAST_FRAMES, True

    def __init__(self, network: torch.nn.Module, name: str, device: torch.device | str = "cpu") -> None:
        self.network, self.name = network.to(device).eval(), name
        self.about = "I3D Kinetics-400, TorchScript of StyleGAN-V, logits, covariance over n"

    @classmethod
    def load(cls, path: str | Path | None = None, device: torch.device | str = "cpu") -> ScriptedI3D:
        """ValueError when the file is missing or another: its program runs, so its hash must be the published one."""
        found = require(I3D_SCRIPT, path)
        check_hash(found, I3D_SCRIPT)
        return cls(torch.jit.load(str(found), map_location=device), "i3dts", device)

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        return self.network(to_square(clips) * 2 - 1, rescale=False, resize=False, return_features=True).float()


class TatsI3D:
    """Our I3D with the weights of VideoGPT and TATS. Only `load` may call it i3dtats."""

    dim, frames, biased = 400, LEAST_FRAMES, False

    def __init__(self, network: nn.Module, name: str, device: torch.device | str = "cpu") -> None:
        self.network, self.name = network.to(device).eval(), name
        self.about = "I3D Kinetics-400, weights of VideoGPT and TATS, logits, covariance over n - 1"

    @classmethod
    def load(cls, path: str | Path | None = None, device: torch.device | str = "cpu") -> TatsI3D:
        """ValueError when the file is missing or another."""
        found = require(I3D_TATS, path)
        check_hash(found, I3D_TATS)
        network = I3D()
        network.load_state_dict(load_state(found))
        return cls(network, "i3dtats", device)

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        return self.network(to_square(clips) * 2 - 1)


class VideoMAEFeatures:
    """VideoMAE-v2 on the first 16 frames, [0, 1] and no other normalization, as cd-fvd has it."""

    frames, biased = 16, True

    def __init__(self, network: VideoMAE, name: str, device: torch.device | str = "cpu", digest: str = "") -> None:
        self.network, self.name = network.to(device).eval(), name
        self.dim = network.fc_norm.weight.numel()
        self.about = f"VideoMAE-v2 ViT-g SSv2 {digest[:8]}, mean token of the first 16 frames, covariance over n"

    @classmethod
    def load(cls, path: str | Path | None = None, device: torch.device | str = "cpu") -> VideoMAEFeatures:
        """ValueError when the file is missing or does not hold exactly these weights."""
        found = require(VIDEOMAE, path)
        state: dict[str, Any] = dict(load_state(found))
        state = next((state[key] for key in ("model", "module") if key in state), state)
        with torch.device("meta"):
            network = VideoMAE()
        try:
            network.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")}, assign=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"weights: {found} is not {VIDEOMAE.name}: {reason}") from None
        return cls(network.float(), "videomae", device, digest_of(found))

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        return self.network(to_square(clips[:, :, : self.frames]))


NETWORKS: dict[str, Callable[[str | Path | None, torch.device | str], ClipFeatures]] = {
    "rfvd_i3dts": ScriptedI3D.load, "rfvd_i3dtats": TatsI3D.load, "rfvd_videomae": VideoMAEFeatures.load,
}  # fmt: skip


class ClipDistance:
    """Moments of one network for the original clips and for every candidate.

    size  (T, H, W) of the clips; rate: their frames per second, None: those of each file
    """

    def __init__(self, features: ClipFeatures, size: tuple[int, ...], rate: float | None) -> None:
        if size[0] < features.frames:
            raise ValueError(f"rfvd: {features.name} needs clips of at least {features.frames} frames, got {size[0]}")
        self.features = features
        side = str(size[1]) if size[1] == size[2] else f"{size[1]}x{size[2]}"
        frames = min(size[0], 16) if isinstance(features, VideoMAEFeatures) else size[0]
        paced = "native" if rate is None else f"{rate:g}fps".replace(".", "p")
        self.name = f"rfvd_{features.name}_{frames}f_{side}_{paced}"
        self.reference = ReferenceMoments(features.dim, features.biased)

    def moments(self) -> Moments:
        """Fresh moments of a candidate."""
        return Moments(self.features.dim, self.features.biased)


def to_square(clips: Tensor) -> Tensor:
    """uint8 [B, 3, T, H, W] -> float32 [B, 3, T, 224, 224] in [0, 1]: bilinear, half-pixel centres, not antialiased."""
    frames = clips.transpose(1, 2).flatten(0, 1).float()
    frames = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", align_corners=False) / 255
    return frames.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2)


def digest_of(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(found: Path, file: WeightFile) -> None:
    """ValueError unless the file is the published one."""
    digest = digest_of(found)
    if digest != SHA256[file.name]:
        raise ValueError(
            f"weights: {found} is not the published {file.name} (sha256 {digest[:8]}..., expected"
            f" {SHA256[file.name][:8]}...): an rfvd with other weights would be another metric"
        )
