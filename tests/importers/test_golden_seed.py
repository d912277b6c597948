"""SEED against the reference: codes, vectors and image embedding, inside whole models under published names."""

import json

import pytest
import torch
from golden_sets import close, folders, label
from safetensors.torch import load_file
from torch import nn

from mmtok import importers
from mmtok.importers import seed
from mmtok.types import Batch

CONTEXT, GRID, PATCH, HIDDEN = 20, 2, 4, 30


def rest(golden):
    """Random weights of EVA and Q-Former under the published names."""
    torch.manual_seed(0)
    width, state = golden["width"], {}

    def linear(name, rows, columns):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(rows, columns) / columns**0.5, torch.randn(rows)

    def norm(name, size):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(size) + 0.5, torch.randn(size)

    root, block = "visual_encoder.", "visual_encoder.blocks.0."
    state |= {
        f"{root}cls_token": torch.randn(1, 1, CONTEXT), f"{root}pos_embed": torch.randn(1, 1 + GRID**2, CONTEXT),
        f"{root}patch_embed.proj.weight": torch.randn(CONTEXT, 3, PATCH, PATCH) * 0.2,
        f"{root}patch_embed.proj.bias": torch.randn(CONTEXT), f"{block}attn.q_bias": torch.randn(CONTEXT),
        f"{block}attn.v_bias": torch.randn(CONTEXT), f"{block}attn.qkv.weight": torch.randn(3 * CONTEXT, CONTEXT) * 0.2,
        "query_tokens": torch.randn(1, golden["num_queries"], width),
        "Qformer.bert.embeddings.position_ids": torch.arange(4)[None],
    }
    for name, size in ((f"{block}norm1", CONTEXT), (f"{block}norm2", CONTEXT), ("ln_vision", CONTEXT)):
        norm(name, size)
    linear(f"{block}attn.proj", CONTEXT, CONTEXT)
    linear(f"{block}mlp.fc1", HIDDEN, CONTEXT)
    linear(f"{block}mlp.fc2", CONTEXT, HIDDEN)
    norm("Qformer.bert.embeddings.LayerNorm", width)
    for i in range(3):
        layer = f"Qformer.bert.encoder.layer.{i}"
        for kind in ["attention"] + ["crossattention"] * (i % 2 == 0):
            for part in ("query", "key", "value"):
                linear(f"{layer}.{kind}.self.{part}", width, CONTEXT if kind[0] == "c" and part != "query" else width)
            linear(f"{layer}.{kind}.output.dense", width, width)
            norm(f"{layer}.{kind}.output.LayerNorm", width)
        linear(f"{layer}.intermediate_query.dense", HIDDEN, width)
        linear(f"{layer}.output_query.dense", width, HIDDEN)
        norm(f"{layer}.output_query.LayerNorm", width)
    return state


def whole(folder):
    golden = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "weights.safetensors") | rest(golden)
    facts = seed.facts({}, state)
    for name in ("width", "num_queries", "codebook_size", "code_dim", "decoder_blocks", "image_down"):
        assert facts[name] == golden[name], name
    assert facts["every"] == 2 and facts["image_features_dim"] == golden["image_features_dim"]
    converted = seed.convert(state, facts | {"decoder_heads": golden["decoder_heads"]})
    assert set(converted.source.values()) | set(converted.dropped) == set(state)
    assert set(converted.state) - set(converted.source) == {"quantizer.usage"}
    return golden, importers.instantiate(converted), load_file(folder / "io.safetensors"), state


@torch.no_grad()
@pytest.mark.parametrize("folder", folders("seed_quantizer"), ids=label)
def test_codes_vectors_embedding(folder):
    golden, tokenizer, io, _ = whole(folder)
    z = tokenizer.encoder.compress(io["query_output"])
    close(z.transpose(1, 2), io["z"])
    out = tokenizer.quantizer(z)
    assert torch.equal(out.grids[0][:, 0], io["indices"])
    close(out.z.transpose(1, 2), io["z_q"])
    close((out.losses["commit"] + golden["beta"] * out.losses["codebook"]).view(1), io["loss_legacy"])
    close(tokenizer.decoder.vectors(out.z), io["decoded_queries"])
    close(tokenizer.decoder(out.z), io["image_embedding"], atol=5e-5)


@torch.no_grad()
def test_the_qformer_is_berts_and_causal():
    """Against torch's post-norm decoder layer, and by changing later queries."""
    _, tokenizer, _, state = whole(folders("seed_quantizer")[0])
    qformer, width = tokenizer.encoder.qformer, tokenizer.encoder.qformer.queries.shape[1]
    image = torch.randn(2, 5, CONTEXT)
    layer = nn.TransformerDecoderLayer(width, 12, HIDDEN, 0.0, "gelu", 1e-12, batch_first=True).eval()
    layer.multihead_attn = nn.MultiheadAttention(width, 12, kdim=CONTEXT, vdim=CONTEXT, batch_first=True)
    root = "Qformer.bert.encoder.layer.0."
    for theirs, kind in ((layer.self_attn, "attention"), (layer.multihead_attn, "crossattention")):
        parts = [state[f"{root}{kind}.self.{part}.weight"] for part in ("query", "key", "value")]
        if kind == "attention":
            theirs.in_proj_weight.copy_(torch.cat(parts))
        else:
            for name, value in zip("qkv", parts, strict=True):
                getattr(theirs, f"{name}_proj_weight").copy_(value)
        theirs.in_proj_bias.copy_(
            torch.cat([state[f"{root}{kind}.self.{part}.bias"] for part in ("query", "key", "value")])
        )
        for leaf in ("weight", "bias"):
            getattr(theirs.out_proj, leaf).copy_(state[f"{root}{kind}.output.dense.{leaf}"])
    pairs = ((layer.norm1, "attention.output.LayerNorm"), (layer.norm2, "crossattention.output.LayerNorm"),
             (layer.norm3, "output_query.LayerNorm"), (layer.linear1, "intermediate_query.dense"),
             (layer.linear2, "output_query.dense"))  # fmt: skip
    for module, name in pairs:
        for leaf in ("weight", "bias"):
            getattr(module, leaf).copy_(state[f"{root}{name}.{leaf}"])
    y = qformer.norm(qformer.queries).expand(2, -1, -1)
    later = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).triu(1)
    wanted = layer(y, image, tgt_mask=later)
    torch.testing.assert_close(qformer.layers[0](y, image, ~later), wanted, atol=1e-5, rtol=1e-5)
    before = qformer(image)
    qformer.queries[5:] *= torch.randn(width)
    after = qformer(image)
    assert torch.equal(before[:, :5], after[:, :5]) and not torch.allclose(before[:, 5:], after[:, 5:])


@torch.no_grad()
def test_codes_alone_give_the_embedding():
    golden, tokenizer, _, state = whole(folders("seed_quantizer")[0])
    x = torch.rand(3, 3, 9, 14) * 2 - 1
    tokens = tokenizer.encode(x)
    assert tokens.codes.shape == (3, 1, golden["num_queries"])
    found = tokenizer.embedding(tokens)
    recon = tokenizer(Batch.of(x))
    torch.testing.assert_close(found, recon.heads["image_embedding"])
    assert set(recon.losses) == {"commit", "codebook", "features"}
    one = tokenizer.encode(x[2:])
    assert torch.equal(one.codes, tokens.codes[2:])
    torch.testing.assert_close(tokenizer.embedding(one), found[2:], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="unCLIP"):
        tokenizer.decode(tokens)
    first = {key: value for key, value in state.items() if not key.startswith("image_down")}
    with pytest.raises(ValueError, match="only the second version"):
        seed.facts({}, first)
