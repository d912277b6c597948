"""Pretrained trunks: parity with torch's encoder layers, published names, other patches, teacher and discriminator."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmtok.discriminators.diffaug import DiffAug
from mmtok.discriminators.dino import DinoDisc
from mmtok.losses.layer_contrast import LayerContrast
from mmtok.nn.pretrained import DinoVision, fit, read_trunk, resample_patch
from mmtok.nn.vit_trunk import QuickGELU, ViTTrunk
from mmtok.training.pretrained_trunk import fill
from mmtok.types import Batch, Reconstruction


def timm_state(width=64, layers=4, grid=4, patch=4, scale=True):
    """Random weights under timm's names."""
    torch.manual_seed(0)
    state = {
        "cls_token": torch.randn(1, 1, width), "pos_embed": torch.randn(1, 1 + grid * grid, width),
        "patch_embed.proj.weight": torch.randn(width, 3, patch, patch) * 0.2,
        "patch_embed.proj.bias": torch.randn(width), "mask_token": torch.zeros(1, width),
    }  # fmt: skip
    for name in ["norm", *(f"blocks.{i}.norm{n}" for i in range(layers) for n in (1, 2))]:
        state |= {f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": torch.randn(width)}
    shapes = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for i in range(layers):
        for name, (rows, columns) in shapes.items():
            state[f"blocks.{i}.{name}.weight"] = torch.randn(rows * width, columns * width) / (columns * width) ** 0.5
            state[f"blocks.{i}.{name}.bias"] = torch.randn(rows * width)
        if scale:
            state |= {f"blocks.{i}.ls{n}.gamma": torch.rand(width) for n in (1, 2)}
    return state


@torch.no_grad()
def test_blocks_equal_torchs_encoder_layers():
    torch.manual_seed(0)
    trunk = ViTTrunk(32, 2, 4, 3, patch=4).eval()
    layers = [
        nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True) for _ in range(2)
    ]
    for block, layer in zip(trunk.blocks, layers, strict=True):
        pairs = [
            (layer.self_attn.in_proj_weight, block.attention.qkv.weight), (layer.linear1.weight, block.mlp.up.weight),
            (layer.self_attn.in_proj_bias, block.attention.qkv.bias), (layer.linear2.weight, block.mlp.down.weight),
            (layer.self_attn.out_proj.weight, block.attention.out.weight), (layer.linear1.bias, block.mlp.up.bias),
            (layer.linear2.bias, block.mlp.down.bias),
        ]
        for theirs, ours in pairs:
            ours.copy_(torch.randn_like(ours) * 0.2)
            theirs.copy_(ours)
    x = torch.rand(2, 3, 12, 12) * 2 - 1
    y = trunk.embed(x)
    assert y.shape == (2, 10, 32)
    z = trunk.norm_post(layers[1](layers[0](y)))
    torch.testing.assert_close(trunk(x), z, atol=1e-5, rtol=1e-5)
    assert trunk(torch.rand(1, 3, 8, 20)).shape == (1, 11, 32)


def test_stochastic_depth_keeps_the_mean_and_rests_in_eval():
    torch.manual_seed(0)
    trunk = ViTTrunk(16, 3, 2, 2, patch=4, drop_path=0.6, layer_scale=0.5)
    assert [block.drop_path for block in trunk.blocks] == pytest.approx([0, 0.3, 0.6])
    block, x = trunk.blocks[2].train(), torch.randn(1, 5, 16).expand(4000, -1, -1)
    mean = block._branch(x, None).mean(0)
    torch.testing.assert_close(mean, x[0], atol=0.1, rtol=0.05)
    assert torch.equal(block.eval()._branch(x, None), x)


@torch.no_grad()
def test_a_resampled_patch_answers_on_enlarged_patches_as_before():
    kernel, patch = torch.randn(5, 3, 7, 7), torch.rand(1, 3, 7, 7)
    larger = torch.nn.functional.interpolate(patch, (9, 9), mode="bicubic", antialias=True)
    before = (kernel * patch).sum((1, 2, 3))
    after = (resample_patch(kernel, 9) * larger).sum((1, 2, 3))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_published_names_and_the_teacher(tmp_path):
    save_file(timm_state(), tmp_path / "model.safetensors")
    state = read_trunk(tmp_path / "model.safetensors")
    trunk = ViTTrunk(64, 4, 1, 4, 4, layer_scale=1.0)
    trunk.load_state_dict(fit(state, 4, 4))
    teacher = DinoVision(str(tmp_path / "model.safetensors"), patch=4, size=16)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    normal = ((x + 1) / 2 - teacher.mean) / teacher.std
    torch.testing.assert_close(teacher(x), trunk.eval()(normal)[:, 0], atol=1e-5, rtol=1e-5)
    assert DinoVision(str(tmp_path / "model.safetensors"), patch=5, size=20)(x).shape == (2, 64)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, message in (("other.safetensors", "no vision transformer"), ("none.safetensors", "does not exist")):
        with pytest.raises(ValueError, match=message):
            read_trunk(tmp_path / name)


def test_trunks_of_a_recipe_are_filled(tmp_path):
    from mmtok.models.image.imagefolder import ImageFolder, LatentGridDecoder, LatentGridEncoder
    from mmtok.quantizers.vq import VQ

    save_file(timm_state(), tmp_path / "model.safetensors")
    encoder = LatentGridEncoder(ViTTrunk(64, 4, 1, 2, 8, layer_scale=1e-5), 4, side=2)
    decoder = LatentGridDecoder(ViTTrunk(64, 4, 1, 2, None, layer_scale=1e-5), 4, patch=8)
    model = ImageFolder(encoder, VQ(4, 16), decoder, (16, 16))
    fill(model, str(tmp_path / "model.safetensors"), ["encoder.trunk", "decoder.trunk"])
    wanted = timm_state()["blocks.3.ls2.gamma"]
    assert torch.equal(model.encoder.trunk.blocks[3].scale2, wanted)
    assert torch.equal(model.decoder.trunk.blocks[3].scale2, wanted)
    with pytest.raises(ValueError, match="has no trunk 'encoder'"):
        fill(model, str(tmp_path / "model.safetensors"), ["encoder"])
    save_file(timm_state(scale=False), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="does not fit encoder.trunk: missing .*scale1"):
        fill(model, str(tmp_path / "plain.safetensors"), ["encoder.trunk"])


def test_the_discriminator_learns_while_its_trunk_rests(tmp_path):
    save_file(timm_state(grid=14, patch=16, scale=False), tmp_path / "dino.safetensors")
    disc = DinoDisc(str(tmp_path / "dino.safetensors"), DiffAug(), kernel=3)
    trunk = disc._trunk[0]
    assert not any("trunk" in name for name in disc.state_dict()) and disc.depths == [0, 1, 2, 3, 4]
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    real, fake = torch.rand(4, 3, 32, 32) * 0.2, torch.rand(4, 3, 32, 32) * 2 - 1
    fake.requires_grad_()
    optimizer = torch.optim.Adam(disc.parameters(), lr=5e-3)
    gaps = []
    for _ in range(12):
        logits = disc(real), disc(fake.detach())
        assert logits[0].shape == (4, 5 * 196)
        loss = torch.relu(1 - logits[0]).mean() + torch.relu(1 + logits[1]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gaps.append(float(loss.detach()))
    assert gaps[-1] < gaps[0]
    disc(fake).mean().backward()
    assert bool(fake.grad.any()) and all(torch.equal(v, before[k]) for k, v in trunk.state_dict().items())


def test_augmentation_moves_each_image_and_passes_gradients():
    torch.manual_seed(0)
    x = (torch.rand(1, 3, 16, 16) * 2 - 1).repeat(3, 1, 1, 1).requires_grad_()
    augment = DiffAug(hole=0.25)
    y = augment(x)
    assert y.shape == x.shape and not torch.allclose(y[0], y[1])
    y.sum().backward()
    assert bool(x.grad.any())
    assert torch.equal(augment.eval()(x), x)
    cut = DiffAug(chance=1.0, hole=0.25)._cut(torch.ones(64, 3, 16, 16))
    holes = (cut[:, 0] == 0).flatten(1).sum(1)
    assert int(holes.max()) == 16 and int(holes.min()) >= 4  # whole holes, or cut at the border
    shifted = DiffAug()._shift(torch.arange(1.0, 257.0).view(1, 1, 16, 16).repeat(64, 3, 1, 1))
    assert int((shifted == 100).flatten(1).any(1).sum()) == 64


def test_the_contrast_is_the_symmetric_one_and_trains_the_layer():
    torch.manual_seed(0)
    model = nn.Module()
    model.project = nn.Linear(6, 4)
    term = LayerContrast(layer="project", gain=2.0)
    with pytest.raises(ValueError, match="no module 'project'"):
        term.bind(nn.Module())
    term.bind(model)
    batch = Batch.of(torch.zeros(5, 3, 4, 4))
    head, batch.features["teacher"] = torch.randn(5, 4, requires_grad=True), torch.randn(5, 6)
    recon = Reconstruction(None, None, {}, {"semantic": head})
    loss = term(recon, batch, 0)
    logits = 2 * head @ model.project(batch.features["teacher"]).T
    rows = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2
    torch.testing.assert_close(loss, rows)
    loss.backward()
    assert bool(head.grad.any()) and bool(model.project.weight.grad.any())
    batch.features.clear()
    with pytest.raises(ValueError, match="LayerContrast.teacher"):
        term(recon, batch, 0)


def test_quick_gelu():
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + (-1.702 * x).exp()))
