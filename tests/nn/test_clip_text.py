"""CLIP's text side: byte pairs as the reference numbers them, and the tower against torch's own transformer."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmtok.models.image.captions import ClipText
from mmtok.nn.clip_text import ClipVocabulary, read_tower

MERGES = [
    "#version: 0.2", "t h", "a n", "th e</w>", "d o", "g</w> s</w>", "do g</w>", "c a", "ca t</w>", "an d</w>", "1 0",
    "! !</w>", "\u00c3 \u00a9</w>", "l e",
]  # fmt: skip


@pytest.mark.parametrize(
    "text,ids",
    [  # of transformers.CLIPTokenizer with these merges
        ("The dog and the cat's 1024 caf\u00e9!!",
         [525, 514, 517, 520, 514, 519, 6, 338, 272, 271, 273, 275, 518, 69, 523, 522, 526]),
        ("", [525, 526]),
        ("a_b-c 'tis we'll", [525, 320, 318, 321, 268, 322, 6, 339, 72, 338, 86, 324, 6, 75, 331, 526]),
    ],
)  # fmt: skip
def test_ids(text, ids):
    assert ClipVocabulary(MERGES).ids(text, 20) == ids + [0] * (20 - len(ids))


def test_long_texts_are_cut_and_keep_their_end():
    vocabulary = ClipVocabulary(MERGES)
    ids = vocabulary.ids("dog " * 50, 8)
    assert len(ids) == 8 and ids[-1] == vocabulary.end


class QuickLayer(nn.TransformerEncoderLayer):
    def __init__(self, dim, heads):
        super().__init__(
            dim, heads, 4 * dim, 0.0, lambda x: x * torch.sigmoid(1.702 * x), batch_first=True, norm_first=True
        )


def published(dim, layers, vocabulary, context):
    """A random tower as torch layers, and its weights under the published names."""
    torch.manual_seed(0)
    stack = [QuickLayer(dim, dim // 64) for _ in range(layers)]
    state = {
        "embeddings.token_embedding.weight": torch.randn(vocabulary, dim) / 5,
        "embeddings.position_embedding.weight": torch.randn(context, dim) / 5,
        "final_layer_norm.weight": torch.rand(dim) + 0.5, "final_layer_norm.bias": torch.randn(dim),
    }
    for i, layer in enumerate(stack):
        for p in layer.parameters():
            nn.init.normal_(p, std=0.1)
        theirs = layer.state_dict()
        for leaf in ("weight", "bias"):
            parts = theirs[f"self_attn.in_proj_{leaf}"].chunk(3)
            names = {f"self_attn.{n}_proj": part for n, part in zip("qkv", parts, strict=True)} | {
                "self_attn.out_proj": theirs[f"self_attn.out_proj.{leaf}"], "layer_norm1": theirs[f"norm1.{leaf}"],
                "layer_norm2": theirs[f"norm2.{leaf}"], "mlp.fc1": theirs[f"linear1.{leaf}"],
                "mlp.fc2": theirs[f"linear2.{leaf}"],
            }
            state |= {f"encoder.layers.{i}.{name}.{leaf}": value for name, value in names.items()}
    return stack, {f"text_model.{key}": value.contiguous() for key, value in state.items()}


@torch.no_grad()
def test_tower_and_frozen_reference(tmp_path):
    vocabulary = ClipVocabulary(MERGES)
    stack, state = published(128, 2, vocabulary.size, 12)
    save_file(state, tmp_path / "model.safetensors")
    ids = torch.tensor([vocabulary.ids("the dog and the cat", 12), vocabulary.ids("", 12)])
    x = state["text_model.embeddings.token_embedding.weight"][ids]
    x = x + state["text_model.embeddings.position_embedding.weight"]
    for layer in stack:
        x = layer.eval()(x, src_mask=nn.Transformer.generate_square_subsequent_mask(12))
    norm = [state[f"text_model.final_layer_norm.{leaf}"] for leaf in ("weight", "bias")]
    expected = nn.functional.layer_norm(x, (128,), *norm)
    torch.testing.assert_close(read_tower(tmp_path / "model.safetensors")(ids), expected, atol=1e-5, rtol=1e-4)

    text = ClipText(str(tmp_path), context=12, dim=128)
    with pytest.raises(ValueError, match="merges.txt does not exist"):
        text(["a"])
    (tmp_path / "merges.txt").write_text("\n".join(MERGES), encoding="utf-8")
    torch.testing.assert_close(text(["the dog and the cat", ""]), expected, atol=1e-5, rtol=1e-4)
    assert not list(text.parameters()) and not text.state_dict()
    with pytest.raises(ValueError, match="has context 12"):
        ClipText(str(tmp_path))(["a"])
