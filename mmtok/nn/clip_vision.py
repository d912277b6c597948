"""CLIP's image side (arXiv 2103.00020) as a frozen teacher.

Legend: B batch, W width, P patches.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmtok.nn.attention import TransformerBlock
from mmtok.nn.clip_text import QuickMLP

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ROOT = "vision_model."


class ClipVision(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> features float32 [B, W]: the class token after the last norm, not projected.

    folder  holds `model.safetensors` as openai/clip-vit-* are published on the Hugging Face hub (ViT-L/14: W 1024)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: str) -> None:
        super().__init__()
        state = _read(Path(folder).expanduser() / "model.safetensors")
        kernel = state["embeddings.patch_embedding.weight"]
        width, _, patch, _ = kernel.shape
        layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
        places = state["embeddings.position_embedding.weight"]
        self.size = round((len(places) - 1) ** 0.5) * patch
        self.dim = width
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros_like(places))
        self.norm_pre, self.norm_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(TransformerBlock(width, max(1, width // 64)) for _ in range(layers))
        for block in self.blocks:
            block.mlp = QuickMLP(width, 4 * width)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.load_state_dict(_ours(state, layers))
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate((x.float() + 1) / 2, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        y = self.patch_embed((x - self.mean) / self.std).flatten(2).transpose(1, 2)
        y = self.norm_pre(torch.cat([self.class_token.expand(len(y), 1, -1), y], 1) + self.positions)
        for block in self.blocks:
            y = block(y)
        return self.norm_post(y[:, 0])


def read_clip(path: Path) -> dict[str, Tensor]:
    """Weights of an image tower published as transformers' `model.safetensors`, under our names."""
    state = _read(path)
    return _ours(state, 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers.")))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"ClipVision.folder: {path} does not exist: download openai/clip-vit-large-patch14")
    try:
        with safe_open(path, "pt") as file:
            keys = [key for key in file.keys() if key.startswith(ROOT)]  # noqa: SIM118 (no mapping)
            state = {key.removeprefix(ROOT): file.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not safetensors: {error}") from None
    if "embeddings.patch_embedding.weight" not in state:
        raise ValueError(f"{path}: holds no image tower of CLIP")
    return {key: value.float() for key, value in state.items() if value.is_floating_point()}


def _ours(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    ours = {
        "class_token": state["embeddings.class_embedding"].flatten(),
        "positions": state["embeddings.position_embedding.weight"],
        "patch_embed.weight": state["embeddings.patch_embedding.weight"],
    }
    for leaf in ("weight", "bias"):
        ours[f"norm_pre.{leaf}"] = state[f"pre_layrnorm.{leaf}"]  # spelled so in the published files
        ours[f"norm_post.{leaf}"] = state[f"post_layernorm.{leaf}"]
        for i in range(layers):
            theirs, block = f"encoder.layers.{i}.{{}}.{leaf}", f"blocks.{i}.{{}}.{leaf}"
            ours[block.format("attention.qkv")] = torch.cat(
                [state[theirs.format(f"self_attn.{part}_proj")] for part in "qkv"]
            )
            for a, b in (
                ("self_attn.out_proj", "attention.out"), ("layer_norm1", "norm1"), ("layer_norm2", "norm2"),
                ("mlp.fc1", "mlp.up"), ("mlp.fc2", "mlp.down"),
            ):
                ours[block.format(b)] = state[theirs.format(a)]
    return ours
