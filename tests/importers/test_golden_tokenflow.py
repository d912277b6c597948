"""TokenFlow: the shared index against the reference, inside whole models of both kinds under published names."""

import json

import pytest
import torch
from golden_sets import close, folders, label
from safetensors.torch import load_file

from mmtok import importers
from mmtok.importers import tokenflow
from mmtok.types import Batch

SIGLIP = "encoder_vqkd.vision_model."


def norms(state, name, width):
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(width) + 0.5, torch.randn(width)


def linear(state, name, rows, columns, *kernel):
    state[f"{name}.weight"] = torch.randn(rows, columns, *kernel) / columns**0.5
    state[f"{name}.bias"] = torch.randn(rows)


def cnn(state, z, channels=32):
    """LlamaGen's encoder and decoder with two levels of one block."""
    for side, blocks in (("encoder", 1), ("decoder", 2)):
        first, last = (3, z) if side == "encoder" else (z, 3)
        linear(state, f"{side}.conv_in", channels, first, 3, 3)
        norms(state, f"{side}.norm_out", channels)
        linear(state, f"{side}.conv_out", last, channels, 3, 3)
        places = [f"{side}.mid.{i}" for i in (0, 2)]
        places += [f"{side}.conv_blocks.{i}.res.{j}" for i in (0, 1) for j in range(blocks)]
        for place in places:
            for n in (1, 2):
                norms(state, f"{place}.norm{n}", channels)
                linear(state, f"{place}.conv{n}", channels, channels, 3, 3)
        lowest = 1 if side == "encoder" else 0
        for place in [f"{side}.mid.1", *(f"{side}.conv_blocks.{lowest}.attn.{j}" for j in range(blocks))]:
            norms(state, f"{place}.norm", channels)
            for part in ("q", "k", "v", "proj_out"):
                linear(state, f"{place}.{part}", channels, channels, 1, 1)
        way = "down" if side == "encoder" else "up"
        linear(state, f"{side}.conv_blocks.0.{way}sample.conv", channels, channels, 3, 3)


def clip(state, width, grid, patch):
    root = "encoder_vqkd."
    state |= {
        f"{root}conv1.weight": torch.randn(width, 3, patch, patch), f"{root}class_embedding": torch.randn(width),
        f"{root}positional_embedding": torch.randn(1 + grid**2, width), f"{root}proj": torch.randn(width, 8),
    }  # fmt: skip
    block = f"{root}transformer.resblocks.0"
    for name in (f"{root}ln_pre", f"{root}ln_post", f"{block}.ln_1", f"{block}.ln_2"):
        norms(state, name, width)
    state[f"{block}.attn.in_proj_weight"] = torch.randn(3 * width, width) / width**0.5
    state[f"{block}.attn.in_proj_bias"] = torch.randn(3 * width)
    linear(state, f"{block}.attn.out_proj", width, width)
    linear(state, f"{block}.mlp.c_fc", 4 * width, width)
    linear(state, f"{block}.mlp.c_proj", width, 4 * width)


def siglip(state, width, grid, patch):
    linear(state, f"{SIGLIP}embeddings.patch_embedding", width, 3, patch, patch)
    state[f"{SIGLIP}embeddings.position_embedding.weight"] = torch.randn(grid**2, width)
    for i in range(2):
        layer = f"{SIGLIP}encoder.layers.{i}"
        for name in ("layer_norm1", "layer_norm2"):
            norms(state, f"{layer}.{name}", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(state, f"{layer}.self_attn.{part}", width, width)
        linear(state, f"{layer}.mlp.fc1", 2 * width, width)
        linear(state, f"{layer}.mlp.fc2", width, 2 * width)
    norms(state, f"{SIGLIP}post_layernorm", width)
    linear(state, f"{SIGLIP}head.mlp.fc1", 4, width)


def meaning(state, dim, grid, width=24):
    root, block = "decoder_vqkd.", "decoder_vqkd.blocks.0."
    linear(state, f"{root}patch_embed.proj", width, dim, 1, 1)
    state |= {f"{root}cls_token": torch.randn(1, 1, width), f"{root}pos_embed": torch.randn(1, 1 + grid**2, width)}
    for name in (f"{root}fc_norm", f"{block}norm1", f"{block}norm2"):
        norms(state, name, width)
    state[f"{block}attn.qkv.weight"] = torch.randn(3 * width, width) / width**0.5
    state |= {f"{block}attn.q_bias": torch.randn(width), f"{block}attn.v_bias": torch.randn(width)}
    linear(state, f"{block}attn.proj", width, width)
    linear(state, f"{block}mlp.fc1", 4 * width, width)
    linear(state, f"{block}mlp.fc2", width, 4 * width)
    linear(state, "decode_task_layer.0", width, width)
    linear(state, "decode_task_layer.2", 10, width)


def whole(folder, kind):
    """(golden config, tokenizer, io, Converted, state) of the set completed to a whole checkpoint."""
    golden = json.loads((folder / "config.json").read_text())
    torch.manual_seed(0)
    state = load_file(folder / "weights.safetensors")
    grid, z = golden["scales"][-1], golden["pixel_z_channels"]
    patch = 2 if kind is clip else 3
    linear(state, "post_quant_conv", z, golden["pixel_code_dim"], 1, 1)
    cnn(state, z)
    kind(state, golden["semantic_width"], grid, patch)
    meaning(state, golden["semantic_code_dim"], grid)
    facts = tokenflow.facts({"image_size": grid * patch + (2 if kind is siglip else 0)}, state)
    for name in ("codebook_size", "semantic_code_dim", "pixel_code_dim", "semantic_width", "pixel_z_channels"):
        assert facts[name] == golden[name], name
    converted = tokenflow.convert(state, facts | {"scales": golden["scales"]})
    assert set(converted.source.values()) | set(converted.dropped) == set(state)
    assert set(converted.state) - set(converted.source) == {"quantizer.quantizer.usage"}
    return golden, importers.instantiate(converted), load_file(folder / "io.safetensors"), state


def rows(grids):
    return torch.cat([grid.flatten(1) for grid in grids], 1)


@torch.no_grad()
@pytest.mark.parametrize("kind", [clip, siglip])
@pytest.mark.parametrize("folder", folders("tokenflow_quantizer"), ids=label)
def test_shared_index(folder, kind):
    golden, tokenizer, io, _ = whole(folder, kind)
    semantic, side = tokenizer.semantic, golden["scales"][-1]
    z_sem = semantic.project(torch.tanh(semantic.hidden(io["sem_features"])))
    close(z_sem, io["z_sem"])
    z_pix = tokenizer.quant_conv(io["pix_features"])
    close(z_pix, io["z_pix"])
    z = torch.cat([z_sem.transpose(1, 2).unflatten(2, (side, side)), z_pix], 1)
    out = tokenizer.quantizer(z)
    assert torch.equal(rows(out.grids), io["indices"])
    close(out.z, io["z_q"])
    close(tokenizer.quantizer.decode(out.grids), io["z_q_from_indices"])
    close(tokenizer.quantizer.partial_sums(out.grids)[1], io["z_q_first2"])
    close(out.losses["codebook"].view(1), io["loss_vq"])
    close(golden["beta"] * out.losses["commit"].view(1), io["loss_commit"])


@torch.no_grad()
@pytest.mark.parametrize("kind", [clip, siglip])
def test_images(kind):
    golden, tokenizer, _, state = whole(folders("tokenflow_quantizer")[0], kind)
    side = tokenizer.size[0]
    x = torch.rand(2, 3, side, side) * 2 - 1
    tokens = tokenizer.encode(x)
    assert [grid.shape[-1] for grid in tokens.grids] == golden["scales"]
    image = tokenizer.decode(tokens)
    assert image.shape == x.shape
    recon = tokenizer(Batch.of(x))
    assert recon.heads["teacher_features"].shape == (2, golden["scales"][-1] ** 2, 10)
    torch.testing.assert_close(tokenizer.meaning(tokenizer.embed(tokens)), recon.heads["teacher_features"])
    one = tokenizer.encode(x[1:])
    assert torch.equal(rows(one.grids), rows(tokens.grids)[1:])
    torch.testing.assert_close(tokenizer.decode(one), image[1:], atol=1e-4, rtol=0)
    if kind is siglip:
        assert len(tokenizer.semantic.trunk.blocks) == 1  # the last layer is never read
        bias = torch.cat([state[f"{SIGLIP}encoder.layers.0.self_attn.{part}_proj.bias"] for part in "qkv"])
        assert torch.equal(tokenizer.semantic.trunk.blocks[0].attention.qkv.bias, bias)
        small = x[..., :-3, :-1]
        assert tokenizer.decode(tokenizer.encode(small)).shape == small.shape
        with pytest.raises(ValueError, match="takes images up to"):
            tokenizer.encode(torch.rand(1, 3, side + 1, side))
    else:
        odd = torch.rand(1, 3, side + 1, side + 5) * 2 - 1
        assert tokenizer.decode(tokenizer.encode(odd)).shape == odd.shape
