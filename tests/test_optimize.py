"""Optimized tokenizers: equal codes, the same sound, in every use."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mmtok
from mmtok import hub, importers
from mmtok.nn.attention import MLP
from mmtok.optimize import PackedConv1d, PackedConvTranspose1d, PackedLinear, PackedMLP, optimize

ROOT = Path(__file__).parent / "golden" / "audio"
FAMILIES = {
    "encodec": "encodec", "encodec_48k": "encodec", "dac": "dac", "mimi": "mimi", "snac": "snac",
    "bigcodec": "bigcodec", "speechtokenizer_snake": "speechtokenizer", "wavtokenizer": "wavtokenizer",
}  # fmt: skip


def golden(name):
    folder, family = ROOT / name, importlib.import_module(f"mmtok.importers.{FAMILIES[name]}")
    state = load_file(folder / "weights.safetensors")
    converted = family.convert(state, family.facts(json.loads((folder / "config.json").read_text()), state))
    wave = load_file(folder / "io.safetensors")["wave"]
    return importers.instantiate(converted), wave if wave.dim() == 3 else wave[:, None], converted


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_codes_are_equal_and_sound_the_same(name):
    plain, x, _ = golden(name)
    fast = optimize(golden(name)[0])
    assert any(isinstance(m, PackedConv1d) for m in fast.modules()) and not fast.training
    keys = {key for key in fast.state_dict()}
    assert not any(".parametrizations." in key for key in keys if key.startswith(("encoder.", "decoder.")))
    for clip in (x, x[:1, :, : plain.hop * 2 + 1], x[:1, :, :1]):
        ours, theirs = fast.encode(clip), plain.encode(clip)
        assert all(torch.equal(a, b) for a, b in zip(ours.grids, theirs.grids, strict=True))
        assert torch.allclose(fast.decode(theirs), plain.decode(theirs), atol=2e-5)


@torch.no_grad()
def test_streams_stay_equal():
    fast, x, _ = golden("encodec")
    whole = fast.encode(x)
    fast = optimize(fast)
    state, parts = fast.stream_state(len(x)), []
    pieces = x.split(97, -1)
    for index, piece in enumerate(pieces):
        tokens, state = fast.encode_chunk(piece, state, last=index == len(pieces) - 1)
        parts.append(tokens.codes)
    assert torch.equal(torch.cat(parts, -1), whole.codes)


def test_gradients_still_pass_through_the_decoder():
    plain, x, _ = golden("dac")
    fast = optimize(golden("dac")[0])
    z = plain.embed(plain.encode(x[:1])).detach()
    found = []
    for model in (plain, fast):
        given = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.decoder(given).square().sum(), given)
        found.append(gradient)
    assert torch.allclose(*found, rtol=1e-3, atol=1e-5 * float(found[0].abs().max()))


@torch.no_grad()
def test_half_precision_is_near():
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with pytest.raises(ValueError, match="bfloat16 needs"):
            optimize(golden("dac")[0], torch.bfloat16)
        return
    plain, x, _ = golden("dac")
    fast = optimize(golden("dac")[0], torch.bfloat16)
    tokens = plain.encode(x)
    theirs, ours = plain.decode(tokens), fast.decode(tokens)
    assert ours.dtype == torch.float32
    assert float((ours - theirs).square().mean()) < 1e-2 * float(theirs.square().mean())
    first = (fast.encode(x).codes[:, 0] == tokens.codes[:, 0]).float().mean()
    assert float(first) > 0.5


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU does not compute in bfloat16")
@pytest.mark.parametrize("name", ["speech-tiny", "video-tiny", "image-tiny"])
@torch.no_grad()
def test_half_precision_of_what_ships(name):
    plain, fast = mmtok.load(name), mmtok.load(name, optimize=True, dtype=torch.bfloat16)
    torch.manual_seed(0)
    x = {
        "audio": lambda: 0.3 * torch.sin(torch.arange(8000) * 0.05)[None, None],
        "video": lambda: torch.rand(1, 3, 5, 32, 40) * 2 - 1, "image": lambda: torch.rand(1, 3, 64, 64) * 2 - 1,
    }[plain.modality]()  # fmt: skip
    tokens = plain.encode(x)
    theirs, ours = plain.decode(tokens), fast.decode(tokens)
    assert float((ours - theirs).square().mean()) < 1e-2 * float(theirs.square().mean())
    fast.encode(x)


def test_loading_by_name_or_folder(tmp_path):
    tokenizer, x, converted = golden("dac")
    tokenizer.config = converted.config
    folder = hub.save(tokenizer, tmp_path / "saved")
    fast = mmtok.load(folder, optimize=True)
    assert torch.equal(fast.encode(x).codes, tokenizer.encode(x).codes)
    with pytest.raises(ValueError, match="only with optimize"):
        mmtok.load(folder, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="dtype must be"):
        mmtok.load(folder, optimize=True, dtype=torch.float16)


@pytest.mark.parametrize(
    "sizes", [(4, 2, 0, 0), (16, 8, 4, 0), (10, 5, 3, 1), (7, 3, 0, 0), (3, 4, 1, 1)], ids=str
)
@torch.no_grad()
def test_transposed_convolutions_equal_torch(sizes):
    kernel, stride, padding, output_padding = sizes
    torch.manual_seed(0)
    conv = torch.nn.ConvTranspose1d(6, 5, kernel, stride, padding, output_padding)
    for frames in (1, 2, 9):
        x = torch.randn(2, 6, frames)
        want = conv(x)
        assert torch.allclose(PackedConvTranspose1d(conv, torch.float32)(x), want, atol=1e-5)
        given = x.clone().requires_grad_()
        with torch.enable_grad():
            assert torch.equal(PackedConvTranspose1d(conv, torch.float32)(given), conv(given))


@torch.no_grad()
def test_products_equal_torch():
    torch.manual_seed(0)
    for bias in (True, False):
        linear = torch.nn.Linear(24, 40, bias=bias)
        for shape in ((24,), (3, 24), (2, 7, 24)):
            x = torch.randn(shape)
            assert torch.allclose(PackedLinear(linear, torch.float32)(x), linear(x), atol=1e-5)


@torch.no_grad()
def test_gelu_inside_a_product_is_the_exact_one():
    torch.manual_seed(0)
    mlp = MLP(24, 50)
    x = 4 * torch.randn(3, 7, 24)
    wanted = mlp(x)
    mlp.up, mlp.down = PackedLinear(mlp.up, torch.float32), PackedLinear(mlp.down, torch.float32)
    assert torch.allclose(PackedMLP(mlp)(x), wanted, atol=2e-6)


def test_half_precision_heeds_parts_that_switch_it_off():
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU does not compute in bfloat16")
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(8, 4), torch.randn(5, 8)
    packed = PackedLinear(linear, torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(packed(x), linear(x))
        with torch.autocast("cpu", torch.bfloat16):
            half = packed(x)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), linear(x), rtol=0.02, atol=0.02)
