"""FlexTok's parts against the reference: codes, velocities for every prefix and without codes, guided sampling."""

import pytest
import torch
from golden_sets import check_keys, close, folders, label, load_golden

from mmtok.keep import prefix_mask
from mmtok.models.image.flow import Sampler


@pytest.fixture(params=folders("flextok"), ids=label)
def golden(request):
    return load_golden(request.param)


@torch.no_grad()
def test_codes(golden):
    _, tokenizer, io, converted = golden
    check_keys(tokenizer, converted, own=set())
    close(tokenizer.encoder.read(io["latents"]), io["registers_out"], atol=5e-5)
    z = tokenizer.encoder(io["latents"])
    close(z.transpose(1, 2), io["z"])
    out = tokenizer.quantizer(z)
    assert torch.equal(out.grids[0][:, 0], io["tokens"])
    close(out.z.transpose(1, 2), io["z_q"])
    close(tokenizer.quantizer.decode((io["tokens"][:, None],)), out.z)


@torch.no_grad()
def test_velocities(golden):
    facts, tokenizer, io, _ = golden
    z, count = io["z_q"].transpose(1, 2), len(io["z_q"])
    size = facts["num_registers"]

    def velocity(x, keep, null):
        return tokenizer.decoder(x, io["timesteps"], z, prefix_mask(torch.tensor(keep), size), torch.tensor(null))

    for length in facts["keep_lengths"]:
        close(velocity(io["noise"], [length] * count, [False] * count), io[f"velocity_keep{length}"], atol=3e-4)
    close(velocity(io["noise"], [size] * count, [False] * count), io["velocity"], atol=3e-4)
    close(velocity(io["noise"], [size] * count, [True] * count), io["velocity_null"], atol=3e-4)
    mixed = facts["velocity_mixed"]
    close(velocity(io["noise"], mixed["keep"], mixed["null"]), io["velocity_mixed"], atol=3e-4)
    t = io["timesteps"].view(-1, 1, 1, 1)
    x = t * io["noise"] + (1 - t) * io["latents"]
    close(velocity(x, [size] * count, [False] * count), io["velocity_noised_input"], atol=3e-4)


@torch.no_grad()
def test_sampling(golden):
    facts, tokenizer, io, _ = golden
    z, count, steps = io["z_q"].transpose(1, 2), len(io["z_q"]), facts["euler_steps"]
    keep = torch.ones(count, facts["num_registers"], dtype=torch.bool)

    def velocity(x, t, null):
        return tokenizer.decoder(x, t, z, keep, torch.full((count,), null))

    scale, apg = facts["guidance_scale"], facts["apg"]
    projected = Sampler(steps, scale, True, apg["momentum"], apg["eta"], apg["norm_threshold"])
    for name, sampler in {
        "euler": Sampler(steps, 1.0), "euler_cfg": Sampler(steps, scale, projected=False), "euler_apg": projected,
    }.items():  # fmt: skip
        close(sampler(velocity, io["noise"]), io[name], atol=1e-4)
