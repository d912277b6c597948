"""FlexTok trains with prefixes per sample, decodes any prefix from a seed, and stands on a published VAE."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtok import hub
from mmtok.bitstream import pack, unpack
from mmtok.models.image.flow import Sampler
from mmtok.training.flextok_vae import join
from mmtok.types import Batch

GOLDEN = Path(__file__).parents[2] / "golden" / "parts" / "autoencoder_kl"
PATH = "mmtok.models.image.flextok"
SIZES = {"dim": 3, "channels": 4, "grid": 2, "patch": 2, "num_registers": 4, "width": 32, "layers": 2, "head_dim": 16}
MODEL = {
    "class_path": f"{PATH}.FlexTok",
    "init_args": {
        "encoder": {"class_path": f"{PATH}.FlexEncoder", "init_args": SIZES},
        "quantizer": {"class_path": "mmtok.quantizers.fsq.FSQ", "init_args": {"levels": [8, 5, 5]}},
        "decoder": {"class_path": f"{PATH}.FlexDecoder", "init_args": SIZES},
        "tail": {"class_path": "mmtok.taildrop.UniformTail"},
        "sampler": {"class_path": "mmtok.models.image.flow.Sampler", "init_args": {"steps": 8, "guidance": 1.5}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    state = load_file(GOLDEN / "weights.safetensors")
    save_file({k: v.float() for k, v in state.items()}, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text((GOLDEN / "config.json").read_text())
    return folder


@pytest.fixture
def model(vae):
    torch.manual_seed(0)
    joined = join(hub.build(MODEL), vae)
    joined.vae.requires_grad_(False)
    return joined


@torch.no_grad()
def test_the_vae_is_that_of_diffusers(model):
    io = load_file(GOLDEN / "io.safetensors")
    scale = json.loads((GOLDEN / "config.json").read_text())["scaling_factor"]
    assert model.vae.scale == scale
    torch.testing.assert_close(model.vae.encode(io["x"]), io["z"], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model.vae.decode(io["z"]), io["recon"], atol=1e-4, rtol=1e-4)


def test_learns_the_flow_and_codes_help(model, monkeypatch):
    torch.manual_seed(1)
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = model.vae.encode(x)
    mean, spread = latents.mean(0), latents.std(0).mean()
    # the random VAE finds all images alike, and is sure of none
    monkeypatch.setattr(model.vae, "encode", lambda x, sample=False: (latents - mean) / spread)
    encoder = [p for name, p in model.named_parameters() if name.startswith("encoder.")]
    rest = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("encoder.")]
    optimizer = torch.optim.Adam([{"params": encoder, "lr": 2e-4}, {"params": rest}], lr=2e-3)
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses, lengths = [], set()
    for _ in range(300):
        recon = model(Batch.of(x))
        assert recon.x is None and set(recon.losses) == {"flow"}
        lengths |= set(recon.tokens.num_sent.tolist())
        optimizer.zero_grad()
        recon.losses["flow"].backward()
        optimizer.step()
        losses.append(float(recon.losses["flow"].detach()))
    assert lengths == {1, 2, 3, 4}
    assert sum(losses[-30:]) < 0.6 * sum(losses[:30])
    for name in ("encoder.registers", "decoder.dropped_token", "decoder.null_token", "encoder.project.weight"):
        assert not torch.equal(model.get_parameter(name), before[name]), name
    assert all(torch.equal(p, before[f"vae.{name}"]) for name, p in model.vae.named_parameters())
    # from the same noise, every image is sampled with its own codes and with those of another
    model.eval()
    tokens, noise = model.encode(x), torch.randn(4, 4, 4, 4)
    with torch.no_grad():
        z, clean = model.embed(tokens), model.vae.encode(x)
        own, other = (
            float((model.sample(codes, tokens, noise) - clean).square().mean()) for codes in (z, z.roll(1, 0))
        )
    assert own < 0.5 * other


def test_prefixes_decode_and_noise_belongs_to_the_seed(model):
    torch.nn.init.normal_(model.decoder.out.weight, std=0.05)
    x = torch.rand(3, 3, 16, 13) * 2 - 1
    tokens = model.encode(x, num_tokens=2)
    assert tokens.num_sent.tolist() == [2, 2, 2]
    image = model.decode(tokens, seed=7)
    assert image.shape == x.shape
    for i in range(3):
        torch.testing.assert_close(model.decode(tokens[i], seed=7), image[i : i + 1], atol=1e-4, rtol=0)
    assert not torch.allclose(image, model.decode(tokens, seed=8))
    back = unpack(pack(tokens[1]), model)
    torch.testing.assert_close(model.decode(back, seed=7), image[1:2], atol=1e-4, rtol=0)


def test_guidance_of_a_known_flow():
    """With a constant velocity, sampling lands exactly one velocity away, guided or not."""
    noise = torch.randn(2, 3, 4, 4)

    def velocity(x, t, null):
        return torch.full_like(x, 1.0 if null else 2.0)

    torch.testing.assert_close(Sampler(5, 1.0)(velocity, noise), noise - 2)
    torch.testing.assert_close(Sampler(5, 3.0, projected=False)(velocity, noise), noise - 4)
    # the difference is parallel to the velocity, so that nothing of it is left
    torch.testing.assert_close(Sampler(5, 3.0)(velocity, noise), noise - 2)


def test_mistakes_are_named(model, vae):
    bare = hub.build(MODEL)
    with pytest.raises(ValueError, match="tokenizer.vae is missing"):
        bare.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="images up to 16 pixels"):
        model.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="steps and guidance"):
        Sampler(0)
    wider = {**MODEL, "init_args": {**MODEL["init_args"]}}
    for side in ("encoder", "decoder"):
        wider["init_args"][side] = {**MODEL["init_args"][side], "init_args": SIZES | {"channels": 8}}
    with pytest.raises(ValueError, match="the VAE has 4 channels"):
        join(hub.build(wider), vae)
