"""Feature contrast, and CLIP's image tower as its teacher."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmtok.losses import FeatureContrast
from mmtok.losses.feature_cosine import FeatureCosine, FeatureMSE
from mmtok.nn.clip_vision import MEAN, STD, ClipVision
from mmtok.nn.pretrained import ClipEmbedding, ClipPatches
from mmtok.types import Batch, Reconstruction


def reconstruction(features):
    return Reconstruction(None, None, heads={"features_1": features})


def batch(features):
    data = Batch.of(torch.zeros(len(features), 3, 4, 4))
    data.features["teacher"] = features
    return data


def test_own_feature_wins():
    torch.manual_seed(0)
    target = torch.randn(6, 8)
    term = FeatureContrast(temperature=0.1)
    right = term(reconstruction(3 * target), batch(target), 0)
    assert term.stats["accuracy"] == 1
    wrong = term(reconstruction(target.roll(1, 0)), batch(target), 0)
    assert term.stats["accuracy"] == 0 and right < wrong
    x = torch.randn(6, 8, requires_grad=True)
    term(reconstruction(x), batch(target), 0).backward()
    assert bool(x.grad.any())
    with pytest.raises(ValueError, match="widths differ"):
        term(reconstruction(target[:, :4]), batch(target), 0)
    with pytest.raises(ValueError, match="FeatureContrast.teacher"):
        term(reconstruction(target), Batch.of(torch.zeros(6, 3, 4, 4)), 0)


@torch.no_grad()
def test_clip_image_tower(tmp_path):
    torch.manual_seed(0)
    width, patch = 64, 7
    layer = nn.TransformerEncoderLayer(
        width, 1, 4 * width, 0.0, lambda x: x * torch.sigmoid(1.702 * x), batch_first=True, norm_first=True
    ).eval()
    norms = [nn.LayerNorm(width) for _ in range(2)]
    for p in [*layer.parameters(), *norms[0].parameters(), *norms[1].parameters()]:
        nn.init.normal_(p, std=0.2)
    kernel, token, places = torch.randn(width, 3, patch, patch) / 9, torch.randn(width), torch.randn(5, width)
    state = {
        "embeddings.class_embedding": token, "embeddings.position_embedding.weight": places,
        "embeddings.patch_embedding.weight": kernel,
    }
    names = {
        "self_attn.out_proj": layer.self_attn.out_proj, "layer_norm1": layer.norm1, "layer_norm2": layer.norm2,
        "mlp.fc1": layer.linear1, "mlp.fc2": layer.linear2,
    }
    for leaf in ("weight", "bias"):
        state |= {f"pre_layrnorm.{leaf}": getattr(norms[0], leaf), f"post_layernorm.{leaf}": getattr(norms[1], leaf)}
        state |= {f"encoder.layers.0.{name}.{leaf}": getattr(part, leaf) for name, part in names.items()}
        fused = getattr(layer.self_attn, f"in_proj_{leaf}").chunk(3)
        state |= {f"encoder.layers.0.self_attn.{n}_proj.{leaf}": v for n, v in zip("qkv", fused, strict=True)}
    with pytest.raises(ValueError, match="does not exist"):
        ClipVision(str(tmp_path))
    save_file({f"vision_model.{k}": v.detach().contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no visual_projection.weight"):
        ClipEmbedding(str(tmp_path))
    whole = {f"vision_model.{k}": v.detach().contiguous() for k, v in state.items()}
    save_file(whole | {"visual_projection.weight": torch.randn(5, width)}, tmp_path / "model.safetensors")
    x = torch.rand(2, 3, 2 * patch, 2 * patch) * 2 - 1
    y = ((x + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    y = nn.functional.conv2d(y, kernel, stride=patch).flatten(2).transpose(1, 2)
    y = norms[0](torch.cat([token.expand(2, 1, -1), y], 1) + places)
    expected = norms[1](layer(y)[:, 0])
    tower = ClipVision(str(tmp_path))
    torch.testing.assert_close(tower(x), expected, atol=1e-5, rtol=1e-4)
    assert tower.dim == width and not any(p.requires_grad for p in tower.parameters())
    # the same image in the projected readings, through trunks of another implementation
    embedding, patches = ClipEmbedding(str(tmp_path)), ClipPatches(str(tmp_path), normalize=True)
    torch.testing.assert_close(embedding(x), expected @ embedding.project.T, atol=1e-4, rtol=1e-4)
    wanted = norms[1](layer(y)[:, 1:]) @ embedding.project.T
    torch.testing.assert_close(patches(x), wanted, atol=1e-4, rtol=1e-4)
    assert not any(p.requires_grad for p in patches.parameters())


def test_distances_to_features():
    batch = Batch.of(torch.zeros(2, 3, 4, 4))
    ours, theirs = torch.randn(2, 4, 6, requires_grad=True), torch.randn(2, 4, 6)
    batch.features["teacher"] = theirs
    recon = Reconstruction(None, None, {}, {"teacher_features": ours})
    cosine = (ours * theirs).sum(-1) / ours.norm(dim=-1) / theirs.norm(dim=-1)
    torch.testing.assert_close(FeatureCosine()(recon, batch, 0), (1 - cosine).mean())
    torch.testing.assert_close(FeatureMSE()(recon, batch, 0), (ours - theirs).square().mean())
    batch.features.clear()
    with pytest.raises(ValueError, match="FeatureMSE.teacher"):
        FeatureMSE()(recon, batch, 0)
    with pytest.raises(ValueError, match="make them equal"):
        FeatureCosine(torch.nn.Flatten())(recon, batch, 0)
