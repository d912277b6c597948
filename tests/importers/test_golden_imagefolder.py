"""ImageFolder and RobustTok: quantizers against the reference inside whole models under published names.

The golden sets hold the parts between encoder and decoder; the transformers around them are ours, with random weights
under timm's names, so that the key map is exercised whole.
"""

import json
import re

import pytest
import torch
from golden_sets import close, folders, label
from safetensors.torch import load_file

from mmtok import importers
from mmtok.importers import imagefolder

WIDTH, GRID, PATCH = 16, 3, 4


def published_trunks(facts):
    """Random weights of encoder and decoder, spelled out from the published classes."""
    torch.manual_seed(1)
    n, side, width = facts["branches"], facts["patch_nums"][-1], facts["width"]
    state = {
        "encoder.latent_tokens": torch.randn(1, n * side * side, width),
        "encoder.lvl_embed.weight": torch.randn(1 + n, width), "decoder.lvl_embed.weight": torch.randn(2, width),
        "encoder.lvl1LC": torch.zeros(1, 1 + GRID**2 + n * side * side, dtype=torch.int64),
        "decoder.lvl1LC": torch.zeros(1, 2 + GRID**2 + side * side, dtype=torch.int64),
        "decoder.mask_token": torch.randn(1, 1, width), "semantic_model.cls_token": torch.zeros(1, 1, width),
        "decoder.to_pixel.model.weight": torch.randn(3 * PATCH**2, width) * 0.1,
        "decoder.to_pixel.model.bias": torch.zeros(3 * PATCH**2),
        "encoder.model.patch_embed.proj.weight": torch.randn(width, 3, PATCH, PATCH) * 0.1,
        "encoder.model.patch_embed.proj.bias": torch.randn(width),
    }
    for side_name in ("encoder", "decoder"):
        root = f"{side_name}.model."
        state[f"{root}cls_token"] = torch.randn(1, 1, width)
        state[f"{root}pos_embed"] = torch.randn(1, 1 + GRID**2, width)
        for name in ("norm", "blocks.0.norm1", "blocks.0.norm2"):
            state |= {f"{root}{name}.weight": torch.rand(width) + 0.5, f"{root}{name}.bias": torch.randn(width)}
        shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width),
                  "mlp.fc2": (width, 4 * width)}  # fmt: skip
        for name, shape in shapes.items():
            state[f"{root}blocks.0.{name}.weight"] = torch.randn(shape) / shape[1] ** 0.5
            state[f"{root}blocks.0.{name}.bias"] = torch.randn(shape[0])
        for i in (1, 2):
            state[f"{root}blocks.0.ls{i}.gamma"] = torch.rand(width)
    return state


def whole(folder):
    """(golden config, tokenizer, io, Converted) of a set completed to a whole checkpoint."""
    golden = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "weights.safetensors")
    scales = golden.get("patch_nums", [4])
    if folder.name == "imagefolder_vq_perturbation":
        state = {f"quantize.{key}": value for key, value in state.items()}
    elif folder.name == "imagefolder_msbr":
        state = {f"quantizes.{i}.{key}": value for key, value in state.items() for i in (0, 1)}
    dim = golden.get("code_dim", golden.get("bits"))
    branches = 1 if folder.name == "imagefolder_vq_perturbation" else 2
    width = state["quant_conv.weight"].shape[1] if "quant_conv.weight" in state else WIDTH
    if "quant_conv.weight" not in state:
        state |= {
            "quant_conv.weight": torch.randn(dim, width, 1, 1), "quant_conv.bias": torch.randn(dim),
            "post_quant_conv.weight": torch.randn(width, branches * dim, 1, 1),
            "post_quant_conv.bias": torch.randn(width),
        }
    state |= published_trunks({"branches": branches, "patch_nums": scales, "width": width})
    facts = imagefolder.facts({"v_patch_nums": scales}, state)
    converted = imagefolder.convert(state, facts)
    assert set(converted.source.values()) | set(converted.dropped) == set(state)
    own = set(converted.state) - set(converted.source)
    assert all(re.fullmatch(r"quantizer\.(.*\.)?usage", key) for key in own)
    return golden, importers.instantiate(converted), load_file(folder / "io.safetensors"), facts


def rows(grids, branch):
    return torch.cat([grid[:, branch].flatten(1) for grid in grids], 1)


@torch.no_grad()
@pytest.mark.parametrize("folder", folders("imagefolder_msrq"), ids=label)
def test_scales_of_two_branches(folder):
    golden, tokenizer, io, facts = whole(folder)
    assert (facts["codebook_size"], facts["share_quant_resi"]) == (golden["codebook_size"], golden["share_quant_resi"])
    side, count = golden["patch_nums"][-1], golden["branches"]
    # from the latents' outputs on
    h = io["h"][..., 0].transpose(1, 2)
    z = tokenizer.encoder.project(h)
    close(z.transpose(1, 2)[..., None], io["f"])
    z = z.unflatten(1, (count, side, side)).movedim(-1, 2).flatten(1, 2)
    out = tokenizer.quantizer(z)
    for b in range(count):
        assert torch.equal(rows(out.grids, b), io[f"indices_branch{b}"])
    close(out.z, io["z_q"])
    close(tokenizer.quantizer.decode(out.grids), io["z_q"])
    post = tokenizer.decoder.embed(io["z_q"].flatten(2).transpose(1, 2))
    close(post.transpose(1, 2).unflatten(2, (side, side)), io["post"])
    vq = sum(io[f"loss_vq_branch{b}"] for b in range(count)) / count
    close(out.losses["codebook"].view(1), vq)
    commit = sum(io[f"loss_commit_branch{b}"] for b in range(count)) / count
    close(golden["beta"] * len(golden["patch_nums"]) * out.losses["commit"].view(1), commit)


@torch.no_grad()
@pytest.mark.parametrize("folder", folders("imagefolder_msbr"), ids=label)
def test_binary_scales(folder):
    golden, tokenizer, io, facts = whole(folder)
    assert facts["binary"] and facts["scale"] == pytest.approx(golden["scale"], rel=1e-5)
    out = tokenizer.quantizer(torch.cat([io["f"], io["f"]], 1))
    for b in (0, 1):
        assert torch.equal(rows(out.grids, b), io["indices"])
    close(out.z, torch.cat([io["f_hat"][-1]] * 2, 1))


@torch.no_grad()
@pytest.mark.parametrize("folder", folders("imagefolder_vq_perturbation"), ids=label)
def test_one_branch_without_scales(folder):
    golden, tokenizer, io, facts = whole(folder)
    assert facts["codebook_size"] == golden["codebook_size"] and golden["codebook_norm"]
    out = tokenizer.quantizer(io["z"])
    assert torch.equal(out.grids[0][:, 0], io["indices"])
    close(out.z, io["z_q"])
    close(out.losses["codebook"].view(1), io["loss_vq"])
    close(golden["beta"] * out.losses["commit"].view(1), io["loss_commit"])


@pytest.mark.parametrize("folder", folders("imagefolder_msrq", "imagefolder_vq_perturbation"), ids=label)
def test_images_batched_and_of_other_sizes(folder):
    _, tokenizer, _, facts = whole(folder)
    side = facts["grid"] * facts["patch"]
    assert tokenizer.size == (side, side)
    x = torch.rand(2, 3, side, side) * 2 - 1
    tokens = tokenizer.encode(x)
    image = tokenizer.decode(tokens)
    for i in range(2):
        one = tokenizer.encode(x[i : i + 1])
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(one.grids, tokens.grids, strict=True))
        torch.testing.assert_close(tokenizer.decode(one), image[i : i + 1], atol=1e-4, rtol=0)
    odd = torch.rand(1, 3, side + 1, 2 * side - 3) * 2 - 1
    assert tokenizer.decode(tokenizer.encode(odd)).shape == odd.shape
    if len(facts["patch_nums"]) > 1:
        first = tokenizer.encode(x, num_tokens=3)
        assert all(torch.equal(a, b) for a, b in zip(first.grids[:3], tokens.grids[:3], strict=True))
        assert int(first.num_sent[0]) == 2 * sum(n * n for n in facts["patch_nums"][:3])
