"""VAR's tokenizer learns: all of its parts get gradients, and every further scale makes the image better."""

import torch
import torch.nn.functional as F

from mmtok.importers.vqgan import take_averages
from mmtok.models.image.conv import ConvTokenizer
from mmtok.nn.conv2d import ConvDecoder2d, ConvEncoder2d
from mmtok.quantizers.scales import ScaleResidual, SharedPhi
from mmtok.quantizers.vq import VQ
from mmtok.types import Batch


def tokenizer():
    sizes = {"z_channels": 8, "channels": 16, "channel_mult": (1, 1, 2), "num_res_blocks": 1, "groups": 8}
    quantizer = ScaleResidual(VQ(8, 64, revival=0.05), [1, 2, 4], SharedPhi(8, 4))
    return ConvTokenizer(ConvEncoder2d(**sizes), quantizer, ConvDecoder2d(**sizes), size=(16, 16), quant_kernel=3)


def test_training_uses_all_parts_and_scales():
    torch.manual_seed(0)
    model = tokenizer()
    x = F.interpolate(torch.rand(8, 3, 4, 4) * 2 - 1, 16, mode="bilinear")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(100):
        recon = model(Batch.of(x))
        loss = F.mse_loss(recon.x, x) + 0.25 * recon.losses["commit"] + recon.losses["codebook"]
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            # three scales sit nearest to the first, second or third, and fourth convolution
            used = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
            silent = {name.removesuffix(".bias").removesuffix(".weight") for name, _ in model.named_parameters()}
            silent -= {name.removesuffix(".bias").removesuffix(".weight") for name in used}
            assert all(name.startswith("quantizer.phi.convs") for name in silent) and len(silent) == 1
        optimizer.step()
    model.eval()
    tokens = model.encode(x)
    with torch.no_grad():
        sums = model.quantizer.partial_sums(tokens.grids)
        errors = [float(F.mse_loss(model.decoder(model.post_quant_conv(z)), x)) for z in sums]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.5 * float(x.var())
    assert all(len(grid.unique()) > 1 for grid in tokens.grids)


def test_averages_of_lightning_checkpoints_are_taken():
    weights = {"encoder.a.weight": torch.zeros(2), "loss.b": torch.ones(1)}
    averages = {"model_ema.encoderaweight": torch.ones(2), "model_ema.decay": torch.ones(())}
    averages["model_ema.lossb"] = torch.ones(1)
    state, dropped = take_averages(weights | averages)
    assert torch.equal(state["encoder.a.weight"], torch.ones(2)) and set(state) == set(weights)
    assert set(dropped) == set(averages)
    assert take_averages(weights) == (weights, {})
