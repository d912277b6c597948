"""Exported encoders and decoders give the codes and media of the tokenizer, in onnxruntime and torch, for any batch."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mmtok
from mmtok import hub, importers
from mmtok.cli import main
from mmtok.export import export
from mmtok.export.card import write_card
from mmtok.export.quantizers import codes, grids, latents, values
from mmtok.keep import FlatPrefix
from mmtok.models.image.pyramid import PyramidDecoder, PyramidEncoder, PyramidTokenizer
from mmtok.quantizers.bernoulli import BernoulliBits
from mmtok.quantizers.entropy_constrained import EntropyConstrainedVQ
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.ibq import IBQ
from mmtok.quantizers.lookup_free import BSQ, LFQ
from mmtok.quantizers.multiscale import MultiScale
from mmtok.quantizers.projected import Projected
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.scales import ScaleResidual, SharedPhi
from mmtok.quantizers.split import SplitResidual
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import UniformTail

GOLDEN = Path(__file__).parent / "golden"
CONV = "mmtok.nn.conv2d.Conv{}2d"
SIZES = {"z_channels": 5, "channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1}
FSQ_CONV = {
    "class_path": "mmtok.models.image.conv.ConvTokenizer",
    "init_args": {
        "encoder": {"class_path": CONV.format("Encoder"), "init_args": SIZES},
        "quantizer": {"class_path": "mmtok.quantizers.fsq.FSQ", "init_args": {"levels": [8, 5, 5, 4, 2]}},
        "decoder": {"class_path": CONV.format("Decoder"), "init_args": SIZES},
        "size": [32, 32], "quant_conv": False,
    },
}
DAC = {"width": 4, "strides": [2, 4], "dim": 16}


def dac():
    part = {
        "class_path": "mmtok.quantizers.projected.Projected",
        "init_args": {"dim": 16, "quantizer": {
            "class_path": "mmtok.quantizers.vq.VQ", "init_args": {"dim": 4, "codebook_size": 32, "cosine": True}}},
    }  # fmt: skip
    depth = {"class_path": "mmtok.keep.Prefix", "init_args": {"axis": 1}}
    return hub.build({
        "class_path": "mmtok.models.audio.codec.WaveCodec",
        "init_args": {
            "encoder": {"class_path": "mmtok.nn.dac.DACEncoder", "init_args": DAC},
            "quantizer": {"class_path": "mmtok.quantizers.residual.Residual",
                          "init_args": {"quantizers": [part] * 3, "through": True}},
            "decoder": {"class_path": "mmtok.nn.dac.DACDecoder", "init_args": DAC | {"strides": [4, 2], "width": 16}},
            "sample_rate": 800,
            "tail": {"class_path": "mmtok.taildrop.UniformTail", "init_args": {"coding": depth}},
        },
    })  # fmt: skip


def tokenizer(name):
    torch.manual_seed(0)
    if name == "fsq":
        return hub.build(FSQ_CONV).eval()
    if name == "dac":
        return dac().eval()
    family, system = {"llamagen": ("llamagen", "llamagen_vq"), "var": ("var", "var_vqvae")}[name]
    facts = json.loads((GOLDEN / "image" / system / "config.json").read_text())
    state = {k: v.float() for k, v in load_file(GOLDEN / "image" / system / "weights.safetensors").items()}
    return importers.instantiate(importlib.import_module(f"mmtok.importers.{family}").convert(state, facts))


def run_onnx(path, x):
    import onnxruntime

    return torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"media": x.numpy()})[0])


@pytest.mark.parametrize(("name", "to"), [
    ("llamagen", "onnx"), ("fsq", "onnx"), ("titok", "onnx"), ("titok", "pt2"), ("dac", "onnx"), ("var", "pt2"),
])
def test_graphs_agree_for_any_batch(name, to, tmp_path, small_model):
    model = mmtok.load(small_model) if name == "titok" else tokenizer(name)
    size = (32, 32) if name == "llamagen" else None
    report = export(model, tmp_path / "out", to, size=size)
    assert report.codes_equal >= 0.99 and report.max_error < 1e-4 and report.positions >= 64
    assert {f"encoder.{to}", f"decoder.{to}"} <= set(report.files)
    assert json.loads((tmp_path / "out/parity.json").read_text())["codes_equal"] == report.codes_equal
    if to == "onnx" and name != "dac":
        x = torch.rand(5, 3, *(size or model.size)) * 2 - 1
        found = run_onnx(tmp_path / "out/encoder.onnx", x)
        assert (found == model.encode(x).codes).float().mean() > 0.98


@pytest.mark.parametrize(("name", "length"), [("titok", 5), ("dac", 2)])
def test_a_prefix_is_part_of_the_graph(name, length, tmp_path, small_model):
    model = mmtok.load(small_model) if name == "titok" else tokenizer(name)
    report = export(model, tmp_path / "out", "pt2", length=length)
    assert report.max_error < 1e-4
    program = torch.export.load(tmp_path / "out/encoder.pt2").module()
    x = torch.zeros(2, 3, *model.size) if name == "titok" else torch.zeros(2, 1, *model.size)
    assert program(x).shape[1 if name == "dac" else -1] == length


@pytest.mark.parametrize(("to", "length"), [("onnx", None), ("pt2", 6)])
def test_several_grids_are_several_tensors(to, length, tmp_path):
    """The kind of tokenizer that ships: grids any prefix of which decodes; unsent codes are 0 in the graph too."""
    torch.manual_seed(0)
    books = MultiScale([VQ(5, 30) for _ in range(4)], [4, 2, 1, 1])
    sizes = {"dim": 5, "blocks": (1, 1, 1)}
    encoder = PyramidEncoder(channels=(8, 8, 16), **sizes)
    decoder = PyramidDecoder(4, 5, (8, 8, 8, 16), (1, 1, 1, 1))
    model = PyramidTokenizer(encoder, books, decoder, (64, 64), UniformTail(FlatPrefix())).eval()
    torch.nn.init.normal_(decoder.out.weight, std=0.1)
    report = export(model, tmp_path / "out", to, length=length)
    assert report.codes_equal >= 0.99 and report.max_error < 1e-4 and report.positions == 4 * (length or 37)
    x = torch.rand(3, 3, 64, 64) * 2 - 1
    tokens = model.encode(x, num_tokens=length)
    if to == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        files = [tmp_path / f"out/{side}.onnx" for side in ("encoder", "decoder")]
        encoder, decoder = (onnxruntime.InferenceSession(file) for file in files)
        names = [f"codes_{i}" for i in range(4)]
        found = [torch.from_numpy(grid) for grid in encoder.run(names, {"media": x.numpy()})]
        (again,) = decoder.run(["media"], {n: grid.numpy() for n, grid in zip(names, found, strict=True)})
    else:
        found = torch.export.load(tmp_path / "out/encoder.pt2").module()(x)
        again = torch.export.load(tmp_path / "out/decoder.pt2").module()(*found).detach().numpy()
    for grid, ours, keep in zip(found, tokens.grids, tokens.keep, strict=True):
        assert (grid == ours).float().mean() > 0.98 and not bool(grid[~keep.expand_as(grid)].any())
    assert (torch.from_numpy(again) - model.decode(tokens)).abs().mean() < 1e-2


@pytest.mark.parametrize("quantizer", [
    MultiScale([VQ(6, 50) for _ in range(3)], [4, 2, 1]),
    MultiScale([VQ(6, 50), FSQ([4, 4, 4, 3, 3, 3])], [2, 1], "nearest"),
    ScaleResidual(VQ(6, 50), [1, 2, 4, 8], SharedPhi(6)), ScaleResidual(VQ(6, 50), [1, 3, 8], gain=0.7),
], ids=lambda q: type(q).__name__)  # fmt: skip
@torch.no_grad()
def test_plain_forms_of_several_grids(quantizer):
    quantizer.eval()
    z = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    shapes = quantizer.shapes((8, 8))
    full = quantizer(z).grids
    assert all(map(torch.equal, grids(quantizer, z), full))
    torch.testing.assert_close(latents(quantizer, full), quantizer.decode(full))
    for length in (1, 6, 20):
        keep = FlatPrefix().masks(torch.tensor([[length - 1]]), shapes)
        both = tuple(mask.expand(2, *shape) for mask, shape in zip(keep, shapes, strict=True))
        torch.testing.assert_close(latents(quantizer, full, keep), quantizer.decode(full, both))


@pytest.mark.parametrize("quantizer", [
    VQ(6, 50), VQ(6, 50, l2_norm=True), VQ(6, 50, cosine=True), VQ(6, 50, ema_decay=0.9),
    EntropyConstrainedVQ(6, 50, 0.3), FSQ([4, 5, 2, 3, 8, 7]),
    FSQ([4, 4, 4, 4, 4, 4], double_bound=True), FSQ([3, 5, 7, 9, 5, 3], margin=-1e-3, tan_shift=True), IBQ(6, 50),
    LFQ(6), LFQ(6, groups=[2, 4]), BSQ(6), BSQ(6, groups=[3, 3]), Projected(VQ(3, 50, cosine=True), 6),
    Residual([VQ(6, 50) for _ in range(3)]), Residual([VQ(6, 50)], depth=4),
    SplitResidual(Projected(VQ(3, 50), 6, bias=False), Projected(Residual([VQ(3, 50), VQ(3, 50)]), 6, bias=False)),
], ids=lambda q: type(q).__name__)  # fmt: skip
@torch.no_grad()
def test_plain_forms_equal_the_quantizers(quantizer):
    quantizer.eval()
    if isinstance(quantizer, EntropyConstrainedVQ):
        quantizer.usage.copy_(torch.rand(50, generator=torch.Generator().manual_seed(1)) ** 4)
    z = torch.randn(3, 6, 11, generator=torch.Generator().manual_seed(0))
    grid = quantizer(z).grids[0]
    assert torch.equal(codes(quantizer, z), grid)
    torch.testing.assert_close(values(quantizer, grid), quantizer.decode((grid,)))


def test_what_cannot_be_a_graph_says_why(tmp_path):
    for name, system, family, reason in (
        ("image", "karl", "karl", "decides how many codes"), ("audio", "snac", "snac", "noise"),
        ("audio", "encodec_48k", "encodec", "level"), ("image", "tatitok_vq", None, "caption"),
        ("image", "flextok", "flextok", "sampler"),
    ):
        folder = GOLDEN / name / system
        state = {k: v.float() for k, v in load_file(folder / "weights.safetensors").items()}
        module = __import__(f"mmtok.importers.{family or 'titok'}", fromlist=["x"])
        golden = json.loads((folder / "config.json").read_text())
        facts = golden if name == "image" else module.facts(golden, state)
        model = importers.instantiate(module.convert(state, facts))
        with pytest.raises(ValueError, match=f"export: .*{reason}"):
            export(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="BernoulliBits has no exportable form"):
        codes(BernoulliBits(4, 4), torch.zeros(1, 4, 2))


def test_folders_for_the_hub_load_and_have_a_card(tmp_path, small_model, capsys):
    for to in ("hub", "safetensors"):
        assert main(["export", str(small_model), "--to", to, "--out", str(tmp_path / to), "--licence", "MIT"]) == 0
        assert mmtok.load(tmp_path / to).tokenizer_id == mmtok.load(small_model).tokenizer_id
    card = (tmp_path / "hub/README.md").read_text()
    assert card.startswith("---\nlibrary_name: mmtok\nlicense: mit\n")
    assert "16 codes at 64 x 64" in card and "num_tokens" in card
    assert not (tmp_path / "safetensors/README.md").exists()
    assert "num_quantizers" in write_card(tmp_path, dac(), "dac").read_text()
    card = write_card(tmp_path, mmtok.load(small_model), "x", "GLM-4 licence").read_text()
    assert "\nlicense: other\nlicense_name: GLM-4 licence\n" in card
    assert main(["export", str(small_model), "--to", "hub", "--out", str(tmp_path / "hub")]) == 2
    assert main(["export", str(small_model), "--to", "hub", "--length", "3", "--out", str(tmp_path / "x")]) == 2
    assert "belong to graphs" in capsys.readouterr().err
