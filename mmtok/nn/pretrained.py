"""Weights of pretrained vision transformers for `ViTTrunk`, and frozen trunks as teachers. Nothing is downloaded.

Legend: B batch, W width, P patches, g side of the patch grid.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.clip_vision import MEAN as CLIP_MEAN
from mmtok.nn.clip_vision import STD as CLIP_STD
from mmtok.nn.clip_vision import read_clip
from mmtok.nn.vit_trunk import QuickGELU, ViTTrunk, resized
from mmtok.weights import load_state

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]


class DinoVision(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> DINO or DINOv2 class features [B, W] after the last norm.

    weights  .safetensors or .pth file under timm's key names (timm/vit_base_patch14_dinov2.lvd142m)
    patch    side of a patch; the published 14 is resampled, as ImageFolder does with 16 at 256 pixels
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str, patch: int = 16, size: int = 256) -> None:
        super().__init__()
        state = fit(read_trunk(weights), size // patch, patch)
        self.trunk = trunk_of(state, patch)
        self.dim, self.size = self.trunk.width, size
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        x = (x.float() + 1) / 2
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        return self.trunk((x - self.mean) / self.std)[:, 0]


class ClipEmbedding(nn.Module):
    """Images [B, 3, H, W] in [-1, 1], resized -> CLIP's image embedding [B, E]: its class token, projected.

    folder     holds `model.safetensors` as openai/clip-vit-* are published on the Hugging Face hub (ViT-H/14: E 1024)
    heads      None: one for every 64 channels; ViT-H has 16
    quick      whether its GELU is OpenAI's quick one
    normalize  shift and scale pixels as CLIP was trained with
    """

    shift: Tensor
    spread: Tensor

    def __init__(self, folder: str, heads: int | None = None, quick: bool = True, normalize: bool = True) -> None:
        super().__init__()
        file = Path(folder).expanduser() / "model.safetensors"
        state = read_clip(file)
        kernel, hidden = state["patch_embed.weight"], len(state["blocks.0.mlp.up.bias"])
        layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        width, patch, grid = len(kernel), kernel.shape[-1], round((len(state["positions"]) - 1) ** 0.5)
        self.trunk = ViTTrunk(
            width, layers, heads or max(1, width // 64), grid, patch, hidden, 1e-5, norm_pre=True, patch_bias=False,
            activation=QuickGELU() if quick else None,
        )
        self.trunk.load_state_dict(state)
        whole = load_state(file)
        if "visual_projection.weight" not in whole:
            raise ValueError(f"{file}: holds no visual_projection.weight: use a file of the whole CLIP")
        self.project = nn.Parameter(whole["visual_projection.weight"].float())
        self.size, self.normalize = grid * patch, normalize
        self.register_buffer("shift", torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor(CLIP_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x.float(), (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
        return self.read(x)[:, 0]

    def read(self, x: Tensor) -> Tensor:
        """[B, 1 + P, E]: all outputs, projected as the class token is."""
        x = x.float()
        if self.normalize:
            x = ((x + 1) / 2 - self.shift) / self.spread
        return self.trunk(x) @ self.project.T


class ClipPatches(ClipEmbedding):
    """CLIP's patch features instead, [B, P, E], of images of any size; pixels stay in [-1, 1] (TokenFlow)."""

    def __init__(self, folder: str, heads: int | None = None, quick: bool = True, normalize: bool = False) -> None:
        super().__init__(folder, heads, quick, normalize)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x)[:, 1:]


def read_trunk(path: str | Path) -> dict[str, Tensor]:
    """State of a `ViTTrunk` from a file under timm's key names; ValueError names the file when it is no such file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"weights: {file} does not exist: download model.safetensors of a timm vision transformer")
    state = load_state(file)
    if "cls_token" not in state or "blocks.0.attn.qkv.weight" not in state:
        raise ValueError(f"{file}: holds no vision transformer under timm's names (cls_token, blocks.0.attn.qkv)")
    names = {
        "patch_embed.proj": "patch_embed", "norm": "norm_post", "cls_token": "class_token", "pos_embed": "positions"
    }
    inner = {
        "attn.qkv": "attention.qkv", "attn.proj": "attention.out", "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down",
        "norm1": "norm1", "norm2": "norm2", "ls1": "scale1", "ls2": "scale2",
    }  # fmt: skip
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        value = value.float()
        if key in ("cls_token", "pos_embed"):
            out[names[key]] = value.flatten() if key == "cls_token" else value[0]
        elif key.startswith("blocks."):
            _, i, *part, leaf = key.split(".")
            ours = f"blocks.{i}.{inner['.'.join(part)]}" if ".".join(part) in inner else None
            if ours is not None:
                out[ours if leaf == "gamma" else f"{ours}.{leaf}"] = value
        elif key.rpartition(".")[0] in names:
            out[f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}"] = value
    return out


def fit(state: dict[str, Tensor], grid: int, patch: int | None) -> dict[str, Tensor]:
    """The state for another patch grid and size; without `patch`, without the patch embedding."""
    side = round((len(state["positions"]) - 1) ** 0.5)
    places = resized(state["positions"][1:], side, (grid, grid))
    out = state | {"positions": torch.cat([state["positions"][:1], places])}
    kernel = out.pop("patch_embed.weight")
    if patch is None:
        return {key: value for key, value in out.items() if not key.startswith("patch_embed.")}
    return out | {"patch_embed.weight": resample_patch(kernel, patch)}


def resample_patch(kernel: Tensor, side: int) -> Tensor:
    """Patch kernel [W, C, p, p] for patches of another side: on an enlarged patch it answers as before on the patch
    (pseudo-inverse of the bicubic resize; FlexiViT, arXiv 2212.08013)."""
    old = kernel.shape[-1]
    if old == side:
        return kernel
    basis = torch.eye(old * old).view(old * old, 1, old, old)
    resize = F.interpolate(basis, (side, side), mode="bicubic", antialias=True).flatten(1)  # [old^2, side^2]
    return (kernel.flatten(2) @ torch.linalg.pinv(resize).T).unflatten(2, (side, side))


def trunk_of(state: dict[str, Tensor], patch: int) -> ViTTrunk:
    """A frozen trunk of these weights; heads are 64 wide."""
    width, layers = len(state["class_token"]), 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    scale = 1.0 if "blocks.0.scale1" in state else None
    hidden = len(state["blocks.0.mlp.up.bias"])
    grid = round((len(state["positions"]) - 1) ** 0.5)
    trunk = ViTTrunk(width, layers, max(1, width // 64), grid, patch, hidden, layer_scale=scale)
    trunk.load_state_dict(state)
    return trunk.requires_grad_(False).eval()
