"""LaVIT against the reference: selection, merging, codes, both decoders; inside whole models under published names."""

import json

import pytest
import torch
from golden_sets import close, folders, label
from safetensors.torch import load_file

from mmtok import importers
from mmtok.importers import lavit
from mmtok.types import Batch

PATCH = 3
FOLDERS = folders("lavit")


def eva(width, grid):
    """Random weights of the trunk under the published names."""
    torch.manual_seed(0)
    root, block = lavit.EVA, f"{lavit.EVA}blocks.0."
    state = {
        f"{root}cls_token": torch.randn(1, 1, width), f"{root}pos_embed": torch.randn(1, 1 + grid**2, width),
        f"{root}patch_embed.proj.weight": torch.randn(width, 3, PATCH, PATCH) * 0.2,
        f"{root}patch_embed.proj.bias": torch.randn(width), f"{root}head.weight": torch.zeros(2, width),
        f"{root}norm.weight": torch.ones(width), f"{block}attn.q_bias": torch.randn(width),
        f"{block}attn.v_bias": torch.randn(width), f"{block}attn.qkv.weight": torch.randn(3 * width, width) * 0.2,
    }
    for name in ("norm1", "norm2"):
        state |= {f"{block}{name}.weight": torch.rand(width) + 0.5, f"{block}{name}.bias": torch.randn(width)}
    for name, rows, columns in (("attn.proj", width, width), ("mlp.fc1", 50, width), ("mlp.fc2", width, 50)):
        state |= {f"{block}{name}.weight": torch.randn(rows, columns) * 0.2, f"{block}{name}.bias": torch.randn(rows)}
    return state


def whole(folder, decoder):
    """(golden config, tokenizer, io, state) of the set completed to a whole folder, with one of the decoders."""
    golden = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "weights.safetensors") | eva(golden["width"], round(golden["num_patches"] ** 0.5))
    if decoder == lavit.LOW:
        state = {key: value for key, value in state.items() if not key.startswith(lavit.HIGH)}
    facts = lavit.facts({}, state)
    for name in ("width", "layers", "codebook_size", "code_dim", "num_patches"):
        assert facts[name] == golden[name], name
    prompts = golden["prompt_dims"] if decoder == lavit.HIGH else [golden["lowres_prompt_dim"]]
    assert (facts["decoder"], facts["prompt"]) == (decoder, prompts)
    converted = lavit.convert(state, facts | {"heads": golden["heads"], "mlp_ratio": golden["mlp_ratio"]})
    assert set(converted.source.values()) | set(converted.dropped) == set(state)
    assert set(converted.state) - set(converted.source) == {"quantizer.quantizer.usage"}
    return golden, importers.instantiate(converted), load_file(folder / "io.safetensors"), state


@torch.no_grad()
@pytest.mark.parametrize("decoder", [lavit.HIGH, lavit.LOW])
@pytest.mark.parametrize("folder", FOLDERS, ids=label)
def test_selection_codes_and_prompts(folder, decoder):
    _, tokenizer, io, _ = whole(folder, decoder)
    features = io["features"][:, 1:]
    scores = tokenizer.encoder.selector(features)
    close(scores, io["scores"])
    noisy = scores + io["gumbel"]
    keep = noisy[..., 0] > noisy[..., 1]
    assert torch.equal(keep, io["keep"].bool())
    chosen = keep.float()
    close(tokenizer.encoder.merger(features, chosen), io["merged"], atol=5e-5)
    close(tokenizer.encoder.merged(features, chosen)[keep], io["z"])
    quantized, masks = tokenizer._quantize(features, chosen)
    sent = masks[0][:, 0]
    assert sent.sum(1).tolist() == io["lengths"].tolist()
    assert torch.equal(quantized.grids[0][:, 0][sent], io["indices"])
    rows = quantized.z.transpose(1, 2)
    close(rows[sent], io["z_q"])
    prompt, pooled = tokenizer.decoder.prompts(rows, sent)
    if decoder == lavit.HIGH:
        close(prompt, io["decoder_prompt"], atol=5e-5)
        close(pooled, io["decoder_pooled"], atol=5e-5)
    else:
        close(prompt, io["decoder_lowres"], atol=5e-5)
        assert pooled is None


@torch.no_grad()
def test_codes_alone_give_the_prompts():
    golden, tokenizer, _, _ = whole(FOLDERS[0], lavit.HIGH)
    side = tokenizer.size[0]
    x = torch.rand(3, 3, side, side) * 2 - 1
    # a selector that is of several minds
    tokenizer.encoder.selector.judge[4].weight.mul_(20)
    tokens = tokenizer.encode(x)
    lengths = tokens.num_sent.tolist()
    assert all(1 <= n <= golden["num_patches"] for n in lengths)
    codes = torch.tensor(lengths) * torch.tensor(float(golden["codebook_size"])).log2()
    positions = torch.tensor(float(golden["num_patches"])).log2()
    torch.testing.assert_close(tokens.bits, (codes + positions).double(), atol=1e-4, rtol=0)
    prompt, pooled = tokenizer.prompts(tokens)
    for i in range(3):
        one = tokenizer.encode(x[i : i + 1])
        assert torch.equal(one.codes, tokens[i].codes)
        torch.testing.assert_close(tokenizer.prompts(one)[0], prompt[i : i + 1], atol=1e-4, rtol=0)
        torch.testing.assert_close(tokenizer.prompts(one)[1], pooled[i : i + 1], atol=1e-4, rtol=0)
    recon = tokenizer(Batch.of(x))
    torch.testing.assert_close(tokenizer.features(tokens), recon.heads["features"], atol=1e-4, rtol=0)
    wide = torch.rand(1, 3, side + 4, 3 * side) * 2 - 1
    assert tokenizer.encode(wide).codes.shape == (1, 1, golden["num_patches"])
    with pytest.raises(ValueError, match="prompts"):
        tokenizer.decode(tokens)
    with pytest.raises(ValueError, match="follows from the image"):
        tokenizer.encode(x, num_tokens=3)


def test_the_published_folder(tmp_path):
    _, tokenizer, _, state = whole(FOLDERS[0], lavit.HIGH)
    for prefix in (lavit.EVA, lavit.ENCODER, lavit.HIGH):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        torch.save(part, tmp_path / f"{prefix}bin")
    converted = importers.read_published("lavit", tmp_path)
    assert set(converted.state) == set(tokenizer.state_dict())
    (tmp_path / f"{lavit.EVA}bin").unlink()
    with pytest.raises(ValueError, match="import the whole folder"):
        importers.read_published("lavit", tmp_path)
